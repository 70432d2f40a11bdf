"""Several systems side by side: size, cost of training, quality of the answers, and which differences are real."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from itertools import combinations
from pathlib import Path

from speechzoo.evaluation.answers import (
    MEASURES,
    Answer,
    Measure,
    cut_answers,
    normalisers,
    quality_names,
    question_groups,
    score,
    score_by,
    words_per_second,
)
from speechzoo.evaluation.tables import NOT_MEASURED, Cell, Table, count, megabytes, number, percent, seconds
from speechzoo.metrics import Difference, Interval, paired_bootstrap
from speechzoo.system.files import read_json


@dataclass
class StageSummary:
    """One training stage, as `StageCost` leaves it in `summary.json`; None = not measured."""

    name: str
    seconds: float | None = None
    steps: int | None = None
    supervised_tokens: int | None = None
    tokens: int | None = None  # positions of the LLM, audio frames and prompt included, padding not
    examples: int | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None
    peak_memory_mb: float | None = None
    train_loss: float | None = None
    val_loss: float | None = None
    commit: str | None = None  # of the code, see `code_version`
    metrics: list[str] = field(default_factory=list)  # metrics.csv of the stage, in the order of its restarts

    @classmethod
    def from_file(cls, path: str | Path, name: str, metrics: Sequence[str | Path] = ()) -> StageSummary:
        """Read a `summary.json`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no JSON object; the message names the file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no summary of the stage {name!r}; has it finished?")
        known = {f.name for f in fields(cls)} - {"name", "metrics"}
        values = {key: value for key, value in read_json(path).items() if key in known}
        return cls(name=name, metrics=[str(m) for m in metrics], **values)


@dataclass
class SystemResult:
    """A system that answered the test questions, with its training stages (none for a cascade)."""

    name: str
    answers: list[Answer]
    stages: list[StageSummary] = field(default_factory=list)
    total_parameters: int | None = None
    trainable_parameters: int | None = None  # distinct parameters that any stage trained; 0 for a cascade
    peak_memory_mb: float | None = None  # of answering; training stages have their own
    note: str = ""  # one line under the table, e.g. what an upper bound is

    def total(self, name: str) -> float | None:
        """Sum of a quantity over the stages; None if a stage lacks it."""
        values = [getattr(stage, name) for stage in self.stages]
        return None if not values or None in values else sum(values)

    @property
    def peak_memory(self) -> float | None:
        """Highest of all stages and of answering, MB."""
        values = [self.peak_memory_mb, *(stage.peak_memory_mb for stage in self.stages)]
        return max((v for v in values if v is not None), default=None)


def comparison_table(systems: Sequence[SystemResult], seed: int = 0) -> Table:
    """The main table: a column per system, 95 % bootstrap intervals beside the scores."""
    stated = normalisers(answer for system in systems for answer in system.answers)
    table = Table(
        ["", *(system.name for system in systems)],
        caption=f"Systems compared; 95 % bootstrap intervals. {stated}".rstrip(),
    )
    scores = [score(system.answers, seed) for system in systems]
    table.add("Size")
    table.add("Total parameters", *(count(s.total_parameters) for s in systems))
    table.add("Trainable parameters", *(count(s.trainable_parameters) for s in systems))
    table.add("Training")
    table.add("Time", *(_trained(s, seconds(s.total("seconds"))) for s in systems))
    table.add("Tokens", *(_trained(s, count(s.total("tokens"))) for s in systems))
    table.add("Supervised tokens", *(_trained(s, count(s.total("supervised_tokens"))) for s in systems))
    table.add("Final train loss", *(_trained(s, _by_stage(s, "train_loss")) for s in systems))
    table.add("Final validation loss", *(_trained(s, _by_stage(s, "val_loss")) for s in systems))
    table.add("Answers to held-out questions")
    table.add("Questions answered", *(str(len(s.answers)) for s in systems))
    cut = [cut_answers(s.answers) for s in systems]
    if any(number is not None for number in cut):
        table.add("Answers cut off ↓", *(NOT_MEASURED if number is None else str(number) for number in cut))
    for measure in MEASURES:
        if any(measure.key in values for values in scores):
            arrow = "↑" if measure.higher_is_better else "↓"
            table.add(f"{measure.name} {arrow}", *(interval_cell(v.get(measure.key), percent) for v in scores))
    if any(answer.reply_seconds for s in systems for answer in s.answers):
        table.add("Answers spoken", *(str(sum(a.reply_seconds is not None for a in s.answers) or "") for s in systems))
        table.add("Words per second", *(_spoken(words_per_second(s.answers)) for s in systems))
    for name in quality_names(answer for s in systems for answer in s.answers):
        cells = [interval_cell(values.get(name), partial(number, digits=2)) for values in scores]
        table.add(f"{name} of the speech, 1 to 5 ↑", *cells)
    table.add("Cost of answering")
    table.add("Seconds per answer (median) ↓", *(interval_cell(v.get("seconds"), seconds) for v in scores))
    table.add("Peak memory, training included ↓", *(megabytes(s.peak_memory) for s in systems))
    return table


def _spoken(rate: float | None) -> str:
    return "" if rate is None else number(rate, 2)


def stage_table(systems: Sequence[SystemResult]) -> Table:
    """Cost and outcome of every training stage."""
    header = ["Stage", "Time", "Steps", "Examples", "Tokens", "Supervised", "Trainable", "Train loss", "Val. loss"]
    table = Table([*header, "Peak memory"], caption="Training stages.")
    for system in systems:
        if not system.stages:
            continue
        table.add(system.name)
        for s in system.stages:
            row = [seconds(s.seconds), count(s.steps), count(s.examples), count(s.tokens), count(s.supervised_tokens)]
            row += [
                count(s.trainable_parameters),
                number(s.train_loss),
                number(s.val_loss),
                megabytes(s.peak_memory_mb),
            ]
            table.add(s.name, *row)
    return table


def kind_table(systems: Sequence[SystemResult], seed: int = 0) -> Table:
    """Exact match and WER by kind of question, and by whether training had seen its facts."""
    table = Table(["Questions", "n", *(s.name for s in systems)], caption="Exact match (word error rate) by kind.")
    _add_groups(table, systems, "Kind of question", lambda a: a.kind, seed)
    if any(a.seen is not None for s in systems for a in s.answers):
        _add_groups(table, systems, "Facts of the question", _seen, seed)
    return table


def pair_differences(
    a: SystemResult, b: SystemResult, seed: int = 0, measures: Sequence[Measure] = MEASURES
) -> dict[str, tuple[Difference, int]]:
    """Paired bootstrap of two systems on the questions both answered: measure key -> (A minus B, questions)."""
    result = {}
    for measure in measures:
        ours = {answer.id: (answer, part) for answer, part in measure.counted(a.answers)}
        common = [(*ours[x.id], part) for x, part in measure.counted(b.answers) if x.id in ours]
        if common:
            answers, left, right = map(list, zip(*common, strict=True))
            result[measure.key] = (paired_bootstrap(left, right, question_groups(answers), seed=seed), len(common))
    return result


def pair_table(systems: Sequence[SystemResult], seed: int = 0, measures: Sequence[Measure] = MEASURES) -> Table:
    """Differences of each pair of systems; those whose interval leaves out 0 stand out."""
    pairs = [(a, b, pair_differences(a, b, seed, measures)) for a, b in combinations(systems, 2)]
    shown = [m for m in measures if m.key != "heard_wer" and any(m.key in d for _, _, d in pairs)]
    caption = (
        "First system minus second (rates in percentage points) on the n questions both answered; "
        "paired bootstrap, 95 % interval, two-sided p (not corrected for many comparisons). "
        "Measures that only one of a pair has are left out."
    )
    # A measure a row, and not a column: a dozen columns of intervals fit no page.
    table = Table(["Pair and measure", "n", "Difference"], caption=caption)
    for a, b, differences in pairs:
        table.add(f"{a.name} − {b.name}")
        for measure in shown:
            if entry := differences.get(measure.key):
                table.add(measure.name, str(entry[1]), difference_cell(entry[0], measure.difference))
    return table


def _seen(answer: Answer) -> str | None:
    return None if answer.seen is None else "seen in training" if answer.seen else "unseen"


def _add_groups(
    table: Table, systems: Sequence[SystemResult], heading: str, key: Callable[[Answer], str | None], seed: int
) -> None:
    table.add(heading)
    scores = [score_by(system.answers, key, seed) for system in systems]
    for name in dict.fromkeys(name for groups in scores for name in groups):
        sizes = [str(sum(key(a) == name for a in s.answers)) for s in systems]
        cells = []
        for groups in scores:
            values = groups.get(name)
            cells.append(
                Cell(percent(values["exact_match"].value), f"(WER {percent(values['wer'].value)})")
                if values and "exact_match" in values
                else Cell(NOT_MEASURED)
            )
        table.add(str(name), sizes[0] if len(set(sizes)) == 1 else " / ".join(sizes), *cells)


def _trained(system: SystemResult, text: str) -> str:
    return text if system.stages else "not trained here"


def _by_stage(system: SystemResult, name: str) -> str:
    return " → ".join(number(getattr(stage, name)) for stage in system.stages)


def interval_cell(interval: Interval | None, show: Callable[[float], str]) -> Cell:
    """A score and its interval, whose unit is written once."""
    if interval is None or interval.value != interval.value:
        return Cell(NOT_MEASURED)
    low, high = (show(x).removesuffix(" %") for x in (interval.low, interval.high))
    return Cell(show(interval.value), f"[{low}, {high}]")


def difference_cell(d: Difference, show: Callable[[float], str]) -> Cell:
    """A difference with its interval and p; strong where the interval leaves out 0."""
    p = "p < 0.001" if d.p < 0.001 else f"p = {d.p:.3f}"
    return Cell(show(d.value), f"[{show(d.low)}, {show(d.high)}], {p}", strong=d.low > 0 or d.high < 0)
