"""`speechzoo compare RUNS…`: finished runs side by side, as Markdown, LaTeX, HTML, JSON and a run of W&B."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from speechzoo.system.terminal import tell_error

EPILOG = """\
speechzoo compare llasm-tiny llama-omni-tiny checkpoints/evaluate/quickstart
speechzoo compare checkpoints/sweeps/tiny checkpoints/quickstart
speechzoo compare checkpoints/sweeps/study_adaptor --group-by adaptor,lr --cost trainable_parameters
speechzoo compare checkpoints/sweeps/study_llm checkpoints/evaluate/study_llm --group-by lora --quality wer

What makes the runs no fair comparison is said first, with their names: other training data (by content), another
budget, commit, objective, test set or number of questions."""


def main(argv: Sequence[str]) -> int:
    """Entry point of `speechzoo compare`."""
    parser = argparse.ArgumentParser(
        prog="speechzoo compare",
        description="Compare models of the zoo, runs of fit, sweeps, the quickstart and what evaluate wrote, together: "
        "mean ± sd over seeds, bootstrap intervals, paired tests, quality against cost, and whether it is fair.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="run, name of `speechzoo list`, sweep, folder of runs, or what `speechzoo evaluate` wrote",
    )
    parser.add_argument(
        "--group-by",
        action="append",
        default=[],
        metavar="KEY[,KEY]",
        help="keys of config.yaml that make a group, or their unambiguous end: adaptor, lr, encoder.layer "
        "(default: runs that differ in their seed alone)",
    )
    parser.add_argument("--quality", metavar="SCORE", help="of the picture: exact_match, wer, asr_wer, val_loss, ...")
    parser.add_argument(
        "--cost", metavar="COST", help="of the picture: seconds (of training), tokens, first_sound, answer_seconds, ..."
    )
    parser.add_argument(
        "--out", type=Path, help="where the report goes (comparison/ in the first folder; comparison/ here for a name)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    args = parser.parse_args(argv)
    from speechzoo.evaluation.runs import find_runs
    from speechzoo.evaluation.runs_report import compare_runs
    from speechzoo.names.published import name_of

    try:
        runs = find_runs(args.runs)
        keys = [key for given in args.group_by for key in given.split(",") if key]
        # A name of the zoo is no folder, and that of a published model is no place to write to.
        out = args.out or Path("" if name_of(args.runs[0]) else args.runs[0]) / "comparison"
        paths = compare_runs(runs, out, args.seed, keys, args.quality, args.cost)
    except (ValueError, OSError, ImportError) as error:
        return tell_error(error, "speechzoo compare")
    print(paths[0].read_text(encoding="utf-8"))
    print("Written: " + ", ".join(str(path) for path in paths))
    return 0
