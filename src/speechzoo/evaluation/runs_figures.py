"""Figures of a comparison of runs as PNG bytes: loss over steps and tokens, bars with intervals."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from speechzoo.evaluation.answers import Measure
from speechzoo.evaluation.figures import GREY, _figure, _png
from speechzoo.evaluation.runs_tables import interval, scores
from speechzoo.evaluation.settings import Group

COLOURS = (
    "#2563a8",
    "#d9601a",
    "#1a7f4b",
    "#7a4fb5",
    "#b3362b",
    "#0e7c86",
    "#8a6d1b",
    "#5b6470",
)  # told apart in print
SHOWN = ("wer", "exact_match", "unit_error_rate")  # the others are in the table
LEGEND = 12  # more groups than this are not named in a figure


def plot_curves(groups: Sequence[Group]) -> bytes | None:
    """Loss of the last stage over steps and over tokens, a colour a group, a line a run; None without curves.

    Validation where it was measured twice or more, else training. Tokens at a step are the stage's tokens times the
    share of its steps: `metrics.csv` does not hold them.
    """
    lines = []
    for index, group in enumerate(groups):
        for run in group.runs:
            train, val = run.curves()
            if train[0].size or val[0].size:
                lines.append((index, run, train, val))
    if not lines:
        return None
    use_val = all(val[0].size > 1 for *_, val in lines)
    figure, (left, right) = _figure(width=9.2, height=3.2, panels=2)
    named = set()
    for index, run, train, val in lines:
        steps, losses = val if use_val else train
        tokens, total = run.last("tokens"), run.last("steps")
        label = groups[index].label if index not in named and len(groups) <= LEGEND else None
        named.add(index)
        style = {"color": COLOURS[index % len(COLOURS)], "lw": 1.3, "marker": "o" if steps.size < 12 else None, "ms": 3}
        left.plot(steps + 1, losses, label=label, **style)
        if tokens and total:
            right.plot((steps + 1) * tokens / total, losses, **style)
    left.set_ylabel("validation loss" if use_val else "training loss")
    left.set_xlabel("optimiser step")
    right.set_xlabel("tokens (positions of the LLM)")
    for axis in (left, right):
        axis.grid(color="#e4e7eb", lw=0.7)
    if any(line.get_label()[0] != "_" for line in left.lines):
        left.legend(frameon=False, fontsize=7)
    return _png(figure)


def plot_bars(groups: Sequence[Group], measures: Sequence[Measure], seed: int = 0) -> bytes | None:
    """Validation loss (mean, ± sd, dots = runs) and scores (mean over seeds, 95 % bootstrap interval) of each group."""
    panels = []
    losses = [group.values("val_loss") for group in groups]
    if any(losses):
        spread = [(s, s) if (s := statistics.stdev(v) if len(v) > 1 else 0.0) else (0.0, 0.0) for v in losses]
        panels.append(("validation loss ± sd", losses, spread))
    for measure in (measure for measure in measures if measure.key in SHOWN):
        values = [[100 * value for value in scores(group, measure)] for group in groups]
        found = [interval(group, measure, seed) for group in groups]
        mid = [statistics.fmean(v) if v else 0.0 for v in values]
        spread = [
            (max(m - 100 * i.low, 0), max(100 * i.high - m, 0)) if i else (0, 0)
            for m, i in zip(mid, found, strict=True)
        ]
        panels.append((f"{measure.name}, % [95 %]", values, spread))
    if not panels:
        return None
    figure, axes = _figure(width=max(2.6, 0.5 * len(groups) + 1.4) * len(panels), height=3.4, panels=len(panels))
    for axis, (title, values, spread) in zip(axes, panels, strict=True):
        for x, (runs, (below, above)) in enumerate(zip(values, spread, strict=True)):
            if not runs:
                continue
            axis.bar(x, statistics.fmean(runs), width=0.62, color=COLOURS[x % len(COLOURS)], alpha=0.75)
            if below or above:
                axis.errorbar(x, statistics.fmean(runs), yerr=[[below], [above]], color="#1c2430", lw=1.2, capsize=3)
            axis.plot(np.full(len(runs), x), runs, "o", color="#1c2430", ms=2.5)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_xticks(range(len(groups)), [g.label for g in groups], rotation=35, ha="right", fontsize=7, color=GREY)
        axis.set_ylim(bottom=0)
    return _png(figure)
