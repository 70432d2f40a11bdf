"""Quality against cost: which groups of runs no other one beats in both."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from speechzoo.evaluation.answers import MEASURES, Measure
from speechzoo.evaluation.comparable import objective
from speechzoo.evaluation.runs import Run
from speechzoo.evaluation.runs_tables import mean_sd, scores
from speechzoo.evaluation.settings import DATA, Group, settings
from speechzoo.evaluation.tables import Cell, Table, count, megabytes, number, percent, seconds

VAL_LOSS = "val_loss"
PREFERRED = ("exact_match", "wer", "unit_error_rate", VAL_LOSS)
"""Qualities in the order in which one is taken where none is asked for: the first that two groups have."""


@dataclass(frozen=True)
class Axis:
    """A quality or a cost: what it is called, which way is better, each run's value of it."""

    key: str
    name: str
    higher_is_better: bool
    show: Callable[[float], str]
    values: Callable[[Group], list[float]]


@dataclass(frozen=True)
class Point:
    """A group with its values, one a run, and whether it is on the front.

    Attributes:
        beaten_by: labels of the groups whose mean is at least as good in both and better in one; empty on the front.
    """

    group: Group
    cost: list[float]
    quality: list[float]
    beaten_by: tuple[str, ...] = ()


@dataclass(frozen=True)
class Front:
    """All groups of which both are known, and finite."""

    cost: Axis
    quality: Axis
    points: list[Point]


def _of_runs(value: Callable[[Run], float | None]) -> Callable[[Group], list[float]]:
    return lambda group: [found for run in group.runs if (found := value(run)) is not None]


def _answering(run: Run) -> float | None:
    timed = [answer.seconds for answer in run.answers if answer.seconds is not None]
    return median(timed) if timed else None


COSTS: dict[str, Axis] = {
    axis.key: axis
    for axis in (
        Axis("seconds", "training time, all stages", False, seconds, _of_runs(lambda run: run.total("seconds"))),
        Axis("tokens", "tokens trained on, all stages", False, count, _of_runs(lambda run: run.total("tokens"))),
        Axis("examples", "conversations trained on", False, count, _of_runs(lambda run: run.total("examples"))),
        Axis(
            "trainable_parameters",
            "trainable parameters",
            False,
            count,
            _of_runs(lambda run: run.peak("trainable_parameters")),
        ),
        Axis("peak_memory_mb", "peak memory", False, megabytes, _of_runs(lambda run: run.peak("peak_memory_mb"))),
        Axis("answer_seconds", "seconds per answer, median", False, seconds, _of_runs(_answering)),
        Axis("first_sound", "time to the first sound, median", False, seconds, _of_runs(lambda run: run.first_sound)),
    )
}


def _of_measure(measure: Measure) -> Axis:
    return Axis(measure.key, measure.name, measure.higher_is_better, percent, lambda group: scores(group, measure))


QUALITIES: dict[str, Axis] = {
    **{measure.key: _of_measure(measure) for measure in MEASURES},
    VAL_LOSS: Axis(VAL_LOSS, "validation loss", False, number, lambda group: group.values(VAL_LOSS)),
}


def front(groups: Sequence[Group], quality: str | None = None, cost: str | None = None) -> Front | None:
    """The groups by quality and cost, means over their runs compared; None where fewer than two have both.

    Args:
        quality: one of `QUALITIES`; default: the first of `PREFERRED` that two groups have. Losses are no default
            where objectives or validation data differ: their values say nothing about each other then.
        cost: one of `COSTS`; default: the training time.

    Raises:
        ValueError: if there is no such quality or cost, or one that was asked for is not known of two groups.
    """
    for name, there, what in ((quality, QUALITIES, "quality"), (cost, COSTS, "cost")):
        if name is not None and name not in there:
            raise ValueError(f"no {what} is called {name!r}; there are {', '.join(there)}")
    axis = COSTS[cost or "seconds"]
    for key in [quality] if quality else PREFERRED:
        if key == VAL_LOSS and not quality and not _same_loss(groups):
            continue
        found = [Point(group, axis.values(group), QUALITIES[key].values(group)) for group in groups]
        # A loss that diverged compares with nothing: nobody could beat it.
        finite = [all(map(math.isfinite, (*point.cost, *point.quality))) for point in found]
        found = [p for p, known in zip(found, finite, strict=True) if known and p.cost and p.quality]
        if len(found) > 1:
            return Front(axis, QUALITIES[key], [_placed(point, found, QUALITIES[key]) for point in found])
    if quality or cost:
        what = " and ".join(name for name in (quality, cost) if name)
        raise ValueError(f"{what}: not known of two groups, so there is nothing to compare")
    return None


def front_table(found: Front) -> Table:
    """The same in words: a row a group, the cheapest first."""
    arrow = "↑" if found.quality.higher_is_better else "↓"
    table = Table(
        ["Runs of", f"{found.cost.name.capitalize()} ↓", f"{_capital(found.quality.name)} {arrow}", "Beaten by"],
        caption="Mean ± standard deviation over runs. Bold: on the Pareto front, no other group's means are at least "
        "as good in both and better in one. The spread decides nothing here: see the differences and their intervals.",
    )
    for point in sorted(found.points, key=lambda point: fmean(point.cost)):
        cells = [mean_sd(point.cost, found.cost.show), mean_sd(point.quality, found.quality.show)]
        best = not point.beaten_by
        table.add(Cell(point.group.label, strong=best), *cells, "; ".join(point.beaten_by) or "nobody")
    return table


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _placed(point: Point, others: Sequence[Point], quality: Axis) -> Point:
    sign = 1 if quality.higher_is_better else -1
    mine = -fmean(point.cost), sign * fmean(point.quality)
    beaten = []
    for other in others:
        theirs = -fmean(other.cost), sign * fmean(other.quality)
        if theirs != mine and theirs[0] >= mine[0] and theirs[1] >= mine[1]:
            beaten.append(other.group.label)
    return Point(point.group, point.cost, point.quality, tuple(beaten))


def _same_loss(groups: Sequence[Group]) -> bool:
    runs = [run for group in groups for run in group.runs if run.config]
    return len({(objective(run), settings(run).get(DATA[1])) for run in runs}) < 2
