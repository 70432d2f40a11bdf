"""`speechzoo doctor --config ...`: examines a training run without training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from speechzoo.system.files import keep_inputs

USAGE = """speechzoo doctor --config FILE [--key value ...] [--doctor.rows N] [--doctor.ignore [NAME,...]] [--json FILE]
       speechzoo doctor --config FILE [--key value ...] --for MACHINE [MACHINE ...] [--json FILE]

Takes the configs and overrides of `speechzoo fit`. Prints what it takes of each device's memory, what a few
conversations teach, and what would make the run worthless. Exit code 1 if there is an error.

  --for MACHINE     the memory alone, for machines that need not be there: 8xH100, 4xL40, 4x48GB; reads neither weights
                    nor data; exit code 1 if one of them is too small
  --positions N     of the longest row, its clip among them; default: prompt.max_length
  --answer N        tokens of each answer; default: all that clip and prompt leave"""


def main(argv: Sequence[str]) -> int:
    """Examine the run that the arguments describe; returns 1 if there is an error in it."""
    parser = argparse.ArgumentParser("speechzoo doctor", usage=USAGE, allow_abbrev=False, add_help=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("--json")
    parser.add_argument("--for", nargs="+", dest="machines")
    parser.add_argument("--positions", type=int)
    parser.add_argument("--answer", type=int)
    options, rest = parser.parse_known_args(argv)
    if options.help or not rest:
        print(USAGE)
        return 0 if options.help else 2
    for name in ("positions", "answer"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} is at least 1")
    if options.json:
        keep_inputs([options.json], [word.rpartition("=")[2] for word in rest])
    from speechzoo.commands.doctor import examine, fits

    if options.machines:
        return int(not fits(rest, options.machines, options.positions, options.answer, options.json))
    return int(examine(rest, options.json, options.positions, options.answer))
