import sys

from speechzoo.cli import main

sys.exit(main())
