"""Figures of a comparison of runs as PNG bytes: quality against cost, losses over steps and tokens, bars."""

from __future__ import annotations

import math
import statistics
import textwrap
from collections.abc import Sequence

import numpy as np

from speechzoo.evaluation.answers import Measure
from speechzoo.evaluation.figures import GREY, Curve, new_figure, png, running_mean
from speechzoo.evaluation.pareto import Front
from speechzoo.evaluation.runs_tables import interval, scores
from speechzoo.evaluation.settings import Group
from speechzoo.evaluation.tables import percent

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
STYLES = ("-", "--", ":", "-.")  # with the colours, 32 groups look different
WRAP = 34  # letters of a line of a label


def plot_curves(groups: Sequence[Group]) -> bytes | None:
    """Loss of the last stage over steps and over tokens, a colour a group; None without curves.

    A group is the mean of its runs, with their range behind it where the groups are few; runs that were not measured
    at the same steps are a line each. The groups are named below the panels. Validation where it was measured twice or
    more, else training, as a running mean. Tokens at a step are the stage's tokens times the share of its steps:
    `metrics.csv` does not hold them.
    """
    found = [(index, *run.curves(), run) for index, group in enumerate(groups) for run in group.runs]
    # One point is no curve; the bars and the table have it.
    found = [(index, train, val, run) for index, train, val, run in found if max(train[0].size, val[0].size) > 1]
    if not found:
        return None
    use_val = all(val[0].size > 1 for _, _, val, _ in found)
    drawn: dict[int, list[tuple[Curve, float]]] = {}
    for index, train, val, run in found:
        tokens, total = run.last("tokens"), run.last("steps")
        curve = val if use_val else (train[0], running_mean(train[1]))
        drawn.setdefault(index, []).append((curve, tokens / total if tokens and total else math.nan))
    columns = 2 if len(drawn) > 1 else 1
    names = {index: wrap(groups[index].label, 2 * WRAP) for index in drawn}
    heights = [name.count("\n") + 1 for name in names.values()]
    below = sum(max(heights[at : at + columns]) for at in range(0, len(heights), columns))
    figure, (left, right) = new_figure(width=9.2, height=3.3 + 0.15 * below, panels=2)
    for index, curves in drawn.items():
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index // len(COLOURS) % len(STYLES)]
        steps = curves[0][0][0]
        if all(np.array_equal(curve[0], steps) for curve, _ in curves[1:]):
            losses = np.stack([curve[1] for curve, _ in curves])
            per_step = statistics.fmean(each for _, each in curves)
            lines = [(steps, losses.mean(0), per_step)]
            for axis, scale in ((left, 1.0), (right, per_step)):
                if len(curves) > 1 and len(drawn) <= len(COLOURS) and math.isfinite(scale):
                    at = (steps + 1) * scale
                    axis.fill_between(at, losses.min(0), losses.max(0), color=colour, alpha=0.12, lw=0)
        else:
            lines = [(*curve, each) for curve, each in curves]
        for n, (steps, losses, per_step) in enumerate(lines):
            look = {"color": colour, "ls": style, "lw": 1.3, "marker": "o" if steps.size < 12 else None, "ms": 3}
            left.plot(steps + 1, losses, label=names[index] if n == 0 else None, **look)
            if math.isfinite(per_step):
                right.plot((steps + 1) * per_step, losses, **look)
    left.set_ylabel("validation loss" if use_val else "training loss (running mean)")
    left.set_xlabel("optimiser step")
    right.set_xlabel("tokens (positions of the LLM)")
    for axis in (left, right):
        axis.grid(color="#e4e7eb", lw=0.7)
    figure.legend(loc="outside lower left", ncols=columns, frameon=False, fontsize=7)
    return png(figure)


def plot_bars(groups: Sequence[Group], measures: Sequence[Measure], seed: int = 0) -> bytes | None:
    """Validation loss (mean, ± sd, dots = runs) and scores (mean over seeds, 95 % bootstrap interval) of each group."""
    panels = []
    losses = [group.values("val_loss") for group in groups]
    losses = [values if all(map(math.isfinite, values)) else [] for values in losses]
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
    labels = [wrap(group.label) for group in groups]
    height = 0.9 + sum(0.16 + 0.14 * (label.count("\n") + 1) for label in labels)
    figure, axes = new_figure(width=2.4 + 2.4 * len(panels), height=max(2.0, height), panels=len(panels))
    for axis, (title, values, spread) in zip(axes, panels, strict=True):
        for y, (runs, (below, above)) in enumerate(zip(values, spread, strict=True)):
            if not runs:
                continue
            axis.barh(y, statistics.fmean(runs), height=0.62, color=COLOURS[y % len(COLOURS)], alpha=0.75)
            if below or above:
                axis.errorbar(statistics.fmean(runs), y, xerr=[[below], [above]], color="#1c2430", lw=1.2, capsize=3)
            axis.plot(runs, np.full(len(runs), y), "o", color="#1c2430", ms=2.5)
        axis.set_title(title, fontsize=9, loc="left")
        axis.set_yticks(range(len(groups)), labels if axis is axes[0] else [], fontsize=7, color=GREY)
        axis.set_ylim(len(groups) - 0.5, -0.5)
        axis.set_xlim(left=0)
    return png(figure)


def plot_front(found: Front) -> bytes:
    """Groups by cost (to the right) and quality (better is up), those on the Pareto front filled and joined.

    A dot is a run, a circle the mean of a group, bars are ± sd over its runs. Numbers stand at the circles, the names
    below: the front's in order of cost, then the others. Costs that differ more than tenfold get a logarithmic axis.
    """
    from matplotlib.ticker import MaxNLocator  # the quickstart's extra, as all of matplotlib

    points = sorted(found.points, key=lambda p: (bool(p.beaten_by), statistics.fmean(p.cost)))
    scale = 100.0 if found.quality.show is percent else 1.0
    names = [wrap(f"{n}  {point.group.label}", 2 * WRAP) for n, point in enumerate(points, start=1)]
    figure, (axis,) = new_figure(width=7.4, height=4.4 + 0.16 * sum(n.count("\n") + 1 for n in names), panels=1)
    means = [(statistics.fmean(p.cost), scale * statistics.fmean(p.quality)) for p in points]
    for n, (point, (x, y), name) in enumerate(zip(points, means, names, strict=True), start=1):
        best = not point.beaten_by
        colour = COLOURS[0] if best else GREY
        spread = [
            statistics.stdev(values) if len(values) > 1 else 0.0
            for values in (point.cost, [scale * v for v in point.quality])
        ]
        axis.errorbar(x, y, xerr=spread[0], yerr=spread[1], color=colour, lw=1, capsize=2, alpha=0.5, zorder=2)
        if len(point.cost) == len(point.quality) > 1:
            axis.plot(point.cost, [scale * v for v in point.quality], ".", color=colour, ms=4, alpha=0.6, zorder=2)
        style = {"mfc": colour if best else "white", "mec": colour, "mew": 1.4, "ms": 15, "zorder": 4}
        axis.plot(x, y, "o", label=name, ls="", **style)
        axis.text(x, y, str(n), color="white" if best else colour, fontsize=8, ha="center", va="center", zorder=5)
    edge = [mean for mean, point in zip(means, points, strict=True) if not point.beaten_by]
    # As stairs: what lies between two of them nobody has reached.
    axis.step(*zip(*edge, strict=True), where="post", color=COLOURS[0], lw=1.4, alpha=0.7, zorder=1)
    if means and max(x for x, _ in means) > 10 * min(x for x, _ in means) > 0:
        axis.set_xscale("log")
    else:
        axis.margins(x=0.12)
        axis.set_xlim(left=max(0.0, axis.get_xlim()[0]))
        axis.xaxis.set_major_locator(MaxNLocator(6))
    axis.margins(y=0.15)
    if not found.quality.higher_is_better:
        axis.invert_yaxis()
    axis.xaxis.set_major_formatter(lambda value, _: found.cost.show(value))
    axis.set_xlabel(f"{found.cost.name} (less is better: to the left)")
    unit = ", %" if scale > 1 else ""
    way = "up" if found.quality.higher_is_better else "up, the axis is turned round"
    axis.set_ylabel(wrap(f"{found.quality.name}{unit}", 44) + f"\n(better: {way})")
    axis.set_title(
        "Filled: nothing here is both better and cheaper (Pareto front of the means)", fontsize=9, loc="left"
    )
    axis.grid(color="#e4e7eb", lw=0.7)
    figure.legend(loc="outside lower left", ncols=1, frameon=False, fontsize=8, markerscale=0.45)
    return png(figure)


def wrap(label: str, width: int = WRAP) -> str:
    """A label on as many lines as it takes; nothing is cut."""
    return "\n".join(textwrap.wrap(label, width)) or label
