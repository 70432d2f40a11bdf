"""`speechzoo compare RUNS…`: finished runs side by side, as Markdown, LaTeX, HTML and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechzoo.system.terminal import tell_error


def main(argv: Sequence[str]) -> int:
    """Entry point of `speechzoo compare`."""
    parser = argparse.ArgumentParser(
        prog="speechzoo compare",
        description="Compare runs of fit, of a sweep or of the quickstart: mean ± sd over seeds, bootstrap intervals, "
        "cost, and whether the comparison is fair.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run, name of `speechzoo list`, sweep, or folder of runs",
    )
    parser.add_argument("--out", type=Path, help="where the report goes (comparison/ in the first folder)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    from speechzoo.evaluation.runs import find_runs
    from speechzoo.evaluation.runs_report import compare_runs

    try:
        paths = compare_runs(find_runs(args.runs), args.out or args.runs[0] / "comparison", args.seed)
    except (ValueError, OSError, ImportError) as error:
        return tell_error(error, "speechzoo compare")
    print(paths[0].read_text(encoding="utf-8"))
    print("Written: " + ", ".join(str(path) for path in paths))
    return 0
