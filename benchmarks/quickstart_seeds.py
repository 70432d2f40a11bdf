"""How much the quickstart's results hang on the seed and on the CPU's kernels: many runs, one Markdown table.

    python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 --kernels native default --out checkpoints/seeds

Runs that are finished are not made again; `--table` only reads them. `kernels` is torch's ATEN_CPU_CAPABILITY
(`default`, `avx2`, `avx512`), which does not bind the matrix products of its BLAS; `native` leaves it unset.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Result = dict[str, Any]


def score(system: str, measure: str) -> Callable[[Result], float]:
    """A system's score as a percentage."""
    return lambda result: 100 * result["scores"][system][measure][0]


def check(words: str) -> Callable[[Result], float]:
    """What was measured for the expectation whose name holds these words."""
    return lambda result: float(next(c["measured"] for c in result["checks"] if words in c["name"]).rstrip("%"))


COLUMNS: dict[str, Callable[[Result], float]] = {
    "copying, WER": check("copies"),
    "LLaSM, WER": score("LLaSM", "wer"),
    "exact": score("LLaSM", "exact_match"),
    "LLaMA-Omni, WER": score("LLaMA-Omni", "wer"),
    "exact ": score("LLaMA-Omni", "exact_match"),
    "unit error rate": check("unit decoder"),
    "ASR-WER": score("LLaMA-Omni", "asr_wer"),
    "from decoded units": lambda result: 100 * result["true_answers_asr_wer"]["decoded"],
    "from true units": lambda result: 100 * result["true_answers_asr_wer"]["true"],
    "cascade, WER": score("Cascade", "wer"),
    "exact  ": score("Cascade", "exact_match"),
    "text, exact": score("Text (upper bound)", "exact_match"),
}


def table(results: list[tuple[str, Result]]) -> str:
    """A row for each run, then mean and standard deviation of each column, in percent."""
    rows = [[name, *(f"{value(result):.1f}" for value in COLUMNS.values()), met(result)] for name, result in results]
    for name, over in {"mean": statistics.fmean, "SD": statistics.stdev}.items():
        if len(results) > 1:
            rows.append([name, *(f"{over([value(r) for _, r in results]):.1f}" for value in COLUMNS.values()), ""])
    head = ["run", *(name.strip() for name in COLUMNS), "expectations"]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])


def met(result: Result) -> str:
    """`8 of 8`, or which were not met."""
    missed = [c["name"] for c in result["checks"] if not c["met"]]
    return f"{len(result['checks']) - len(missed)} of {len(result['checks'])}" + "".join(f"; not: {m}" for m in missed)


def main() -> None:
    """Make the runs, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--kernels", nargs="+", default=["native"])
    parser.add_argument("--out", type=Path, default=Path("checkpoints/seeds"))
    parser.add_argument("--table", action="store_true", help="only the table of the runs that are there")
    args = parser.parse_args()
    results = []
    for kernels in args.kernels:
        for seed in args.seeds:
            out = args.out / f"{kernels}-{seed}"
            if not args.table:
                env = {**os.environ, **({} if kernels == "native" else {"ATEN_CPU_CAPABILITY": kernels})}
                command = [sys.executable, "-m", "speechzoo", "quickstart", f"--seed={seed}", f"--out={out}"]
                subprocess.run(command, env=env, check=False)
            if (out / "results.json").is_file():
                result = json.loads((out / "results.json").read_text())
                results.append((f"{seed}, {result['kernels']}", result))
    print(table(results))


if __name__ == "__main__":
    main()
