"""Tables of a comparison of runs: outcome and cost of each group, differences on the same questions, all runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from itertools import combinations

from speechzoo.evaluation.answers import MEASURES, Answer, Measure, cut_answers, normalisers, question_groups
from speechzoo.evaluation.compare import difference_cell, interval_cell
from speechzoo.evaluation.runs import Run
from speechzoo.evaluation.settings import MISSING, Group, between, short_names, varying
from speechzoo.evaluation.tables import NOT_MEASURED, Cell, Table, count, megabytes, number, percent, points, seconds
from speechzoo.metrics import Difference, Interval, bootstrap_ratio, paired_bootstrap

# How many instructions there were and were followed: shares only when divided, which `evaluate` does.
NUMBERS = ("ifeval_total", "ifeval_strict", "ifeval_loose")

Pooled = dict[str, tuple[Answer, float, float]]


def mean_sd(values: Sequence[float], show: Callable[[float], str]) -> Cell:
    """Mean and sample standard deviation (n - 1); one value, or some that are not finite, have none."""
    if not values:
        return Cell(NOT_MEASURED)
    spread = len(values) > 1 and all(map(math.isfinite, values))
    detail = f"± {show(statistics.stdev(values)).removesuffix(' %')}" if spread else ""
    return Cell(show(statistics.fmean(values)), detail)


def measures_of(groups: Sequence[Group]) -> list[Measure]:
    """The scores that at least one group's answers have."""
    answers = [answer for group in groups for run in group.runs for answer in run.answers]
    return [measure for measure in MEASURES if any(measure.of(answer) for answer in answers)]


def scores(group: Group, measure: Measure) -> list[float]:
    """The score of each run that answered."""
    found = []
    for run in group.runs:
        counts = [part for _, part in measure.counted(run.answers)]
        if total := sum(denominator for _, denominator in counts):
            found.append(sum(numerator for numerator, _ in counts) / total)
    return found


def pooled(group: Group, measure: Measure) -> Pooled:
    """Question id -> one answer to it, and the sums of numerators and denominators over the runs."""
    table: Pooled = {}
    for run in group.runs:
        for answer, (numerator, denominator) in measure.counted(run.answers):
            _, above, below = table.get(answer.id, (answer, 0.0, 0.0))
            table[answer.id] = answer, above + numerator, below + denominator
    return table


def interval(group: Group, measure: Measure, seed: int = 0) -> Interval | None:
    """Bootstrap over questions, the answers of all runs to a question drawn together; None without answers."""
    table = list(pooled(group, measure).values())
    if not table:
        return None
    return bootstrap_ratio([(a, b) for _, a, b in table], question_groups([x for x, _, _ in table]), seed=seed)


def difference(a: Group, b: Group, measure: Measure, seed: int = 0) -> tuple[Difference, int] | None:
    """Paired bootstrap on the questions both groups answered, and how many these are; None if there is none."""
    ours, theirs = pooled(a, measure), pooled(b, measure)
    # The same id in another corpus is another question.
    common = [k for k in ours if k in theirs and ours[k][0].reference == theirs[k][0].reference]
    if not common:
        return None
    left, right = [ours[k] for k in common], [theirs[k] for k in common]
    groups = question_groups([answer for answer, _, _ in left])
    first, second = ([(x, y) for _, x, y in side] for side in (left, right))
    return paired_bootstrap(first, second, groups, seed=seed), len(common)


def result_table(groups: Sequence[Group], seed: int = 0) -> Table:
    """Outcome: losses and scores as mean ± sd over seeds, with 95 % bootstrap intervals of the scores."""
    shown, measures = varying(groups), measures_of(groups)
    short = short_names(shown)
    header = ["Run", "Model", *(short[key] for key in shown), "Seeds", "Train loss", "Validation loss"]
    header += [f"{measure.name} {'↑' if measure.higher_is_better else '↓'}" for measure in measures]
    answered = [[answer for run in group.runs for answer in run.answers] for group in groups]
    cut = [cut_answers(answers) for answers in answered]
    if any(some is not None for some in cut):
        header.append("Answers cut off ↓")
    stated = normalisers(answer for answers in answered for answer in answers)
    caption = "Mean ± standard deviation over seeds; in brackets 95 % bootstrap over questions."
    table = Table(header, caption=f"{caption} {stated}".rstrip())
    for group, answers, some in zip(groups, answered, cut, strict=True):
        cells = [group.names, group.architecture, *(group.settings.get(key, MISSING) for key in shown)]
        cells.append(", ".join(run.seed for run in group.runs))
        row = [Cell(cell) for cell in cells]
        row += [mean_sd(group.values("train_loss"), four), mean_sd(group.values("val_loss"), four)]
        for measure in measures:
            cell = mean_sd(scores(group, measure), percent)
            bounds = interval_cell(interval(group, measure, seed), percent).detail
            row.append(cell._replace(detail=f"{cell.detail} {bounds}".strip()))
        if "Answers cut off ↓" in header:
            row.append(Cell(NOT_MEASURED if some is None else f"{some} of {len(answers)}"))
        table.add(*row)
    return table


def cost_table(groups: Sequence[Group]) -> Table:
    """Size and cost, all stages together: parameters, seconds, tokens, memory."""
    header = ["n", "Trainable", "Total", "Time", "Steps", "Tokens", "Supervised", "Conversations", "Peak memory"]
    table = Table(["Runs of", *header], caption="Cost of a run, all its stages together; mean ± sd over seeds.")
    for group in groups:
        table.add(
            group.label,
            str(len(group.runs)),
            # Of the largest stage: stages train overlapping sets of parameters.
            mean_sd(group.values("trainable_parameters", "peak"), count),
            mean_sd(group.values("total_parameters", "peak"), count),
            mean_sd(group.values("seconds", "total"), seconds),
            mean_sd(group.values("steps", "total"), count),
            mean_sd(group.values("tokens", "total"), count),
            mean_sd(group.values("supervised_tokens", "total"), count),
            mean_sd(group.values("examples", "total"), count),
            mean_sd(group.values("peak_memory_mb", "peak"), megabytes),
        )
    return table


def suite_table(groups: Sequence[Group]) -> Table | None:
    """Scores by rules and judges, and predicted quality of the speech, as `speechzoo evaluate` left them; None without.

    A cell is the mean over runs, each the mean of its answers that have the score, ± sd over runs.
    """
    found = [[_suite_scores(run.answers) for run in group.runs] for group in groups]
    names = sorted({name for runs in found for one in runs for name in one})
    if not names:
        return None
    table = Table(
        ["Runs of", *names],
        caption="Scores of `speechzoo evaluate` by their names in answers.jsonl: means over a run's answers that have "
        "one, ± standard deviation over runs. Its own tables have intervals and paired tests of them.",
    )
    for group, runs in zip(groups, found, strict=True):
        table.add(group.label, *(mean_sd([one[name] for one in runs if name in one], number) for name in names))
    return table


def _suite_scores(answers: Sequence[Answer]) -> dict[str, float]:
    held: dict[str, list[float]] = {}
    for answer in answers:
        for name, value in {**(answer.scores or {}), **(answer.quality or {})}.items():
            if name not in NUMBERS:
                held.setdefault(name, []).append(value)
    return {name: statistics.fmean(values) for name, values in held.items()}


def difference_table(groups: Sequence[Group], seed: int = 0) -> Table | None:
    """Each pair of groups on the questions both answered; None if no two did."""
    measures = [measure for measure in measures_of(groups) if measure.key != "heard_wer"]
    table = Table(
        ["First minus second", "n", *(measure.name for measure in measures)],
        caption="Percentage points on the n questions both answered; paired bootstrap, 95 % interval, two-sided p "
        "(not corrected for many comparisons). Bold: the interval leaves out 0.",
    )
    for a, b in combinations(groups, 2):
        found = [difference(a, b, measure, seed) for measure in measures]
        if any(found):
            n = max(entry[1] for entry in found if entry is not None)
            table.add(f"{a.label} − {b.label}", str(n), *(_difference(entry, n) for entry in found))
    return table if table.rows else None


def settings_table(groups: Sequence[Group]) -> Table | None:
    """What differs between the architectures and is the same within each; None if nothing does."""
    first = {group.architecture: group for group in reversed(groups) if group.settings}
    keys = between(groups)
    if len(first) < 2 or not keys:
        return None
    names = [group.architecture for group in groups if first.get(group.architecture) is group]
    table = Table(["Setting", *names], caption="Settings that differ between the architectures.")
    for key in keys:
        table.add(key.replace("init_args.", ""), *(first[name].settings.get(key, MISSING) for name in names))
    return table


def run_table(runs: Sequence[Run]) -> Table:
    """Every run, those that did not finish included."""
    table = Table(["Run", "State", "Seed", "Train loss", "Validation loss", "Remark"], caption="All runs.")
    for run in runs:
        losses = [four(run.last(name)) for name in ("train_loss", "val_loss")]
        table.add(run.name, Cell(run.state, strong=run.state != "finished"), run.seed, *losses, run.why)
    return table


def four(value: float | None) -> str:
    """A loss with four decimals; one that diverged is "nan"."""
    return "nan" if value is not None and math.isnan(value) else number(value, 4)


def _difference(entry: tuple[Difference, int] | None, n: int) -> Cell:
    if entry is None:
        return Cell(MISSING)
    cell = difference_cell(entry[0], points)
    return cell if entry[1] == n else cell._replace(detail=f"{cell.detail} (n = {entry[1]})")
