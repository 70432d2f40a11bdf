"""`python -m speechzoo`."""

import sys

from speechzoo.cli import main

sys.exit(main())
