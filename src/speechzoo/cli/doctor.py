"""`speechzoo doctor --config ...`: examines a training run without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

USAGE = """speechzoo doctor --config FILE [--key value ...] [--doctor.rows N] [--doctor.ignore [NAME,...]] [--json FILE]

Takes the configs and overrides of `speechzoo fit`. Prints what a few conversations teach, and what would make the run
worthless. Exit code 1 if there is an error."""


def main(argv: Sequence[str]) -> int:
    """Examine the run that the arguments describe; returns 1 if there is an error in it."""
    parser = argparse.ArgumentParser("speechzoo doctor", usage=USAGE, allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--json")
    options, rest = parser.parse_known_args(argv)
    if options.help or not rest:
        print(USAGE)
        return 0 if options.help else 2
    from speechzoo.commands.doctor import examine

    return int(examine(rest, options.json))
