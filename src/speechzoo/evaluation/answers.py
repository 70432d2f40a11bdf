"""Answers of one system to the test questions: the record, its file, its scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

from speechzoo.evaluation.tables import number, percent, points
from speechzoo.metrics import (
    CharErrorRate,
    ExactMatch,
    Interval,
    RatioMetric,
    RougeL,
    UnitErrorRate,
    WordErrorRate,
    answer_tokens,
    bootstrap_median,
    bootstrap_ratio,
    speech_words,
)
from speechzoo.metrics.normalise import ENGLISH, OTHERS, is_english
from speechzoo.system.files import read_lines, write_jsonl


@dataclass(frozen=True)
class Answer:
    """What a system answered to one spoken question."""

    id: str
    kind: str  # family of the question, e.g. "sum"
    question: str
    reference: str
    text: str
    heard: str | None = None  # what a cascade's recogniser wrote down
    units: list[int] | None = None  # predicted, de-duplicated
    reference_units: list[int] | None = None
    seconds: float | None = None  # wall time this answer took
    seen: bool | None = None  # whether training contained this question's facts; None if the corpus does not say
    audio: str | None = None  # sound file of the question, relative to the report's folder or absolute
    reply_audio: str | None = None  # sound file of the spoken answer
    streamed_audio: str | None = None  # the same, made in chunks as its units come
    reply_seconds: float | None = None  # length of the spoken answer
    spoken: str | None = None  # what a recogniser wrote down of the spoken answer
    quality: dict[str, float] | None = None  # predicted mean opinion scores of the spoken answer, by predictor
    stopped: bool | None = None  # by itself, not cut off at the longest answer allowed; None where nobody looked
    references: list[str] | None = None  # all answers that count as right, where there are several
    scores: dict[str, float] | None = None  # by rules and judges, by name; `suites.columns` has them


TEXTS = ("id", "kind", "question", "reference", "text")
"""What every answer has; an empty text stands for what is not known."""


def save_answers(path: str | Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSONL, one record a line; the file appears whole or not at all."""
    write_jsonl(path, map(asdict, answers), sync=True)


def load_answers(path: str | Path) -> list[Answer]:
    """Read answers from JSONL.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a line that is no answer, or an id that comes twice; the message names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of answers")
    names = {field.name for field in fields(Answer)}
    answers: dict[str, Answer] = {}
    for at, line in read_lines(path):
        try:
            record = json.loads(line)
            unknown = sorted(set(record) - names)
            answer = Answer(**{key: value for key, value in record.items() if key in names})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}:{at}: not an answer record ({error})") from error
        if wrong := [name for name in TEXTS if not isinstance(getattr(answer, name), str)]:
            raise ValueError(f"{path}:{at}: {wrong[0]} is {getattr(answer, wrong[0])!r}, and has to be a text")
        if unknown:
            raise ValueError(f"{path}:{at}: unknown keys {unknown}; an answer has {sorted(names)}")
        if answer.id in answers:
            raise ValueError(f"{path}:{at}: the id {answer.id!r} comes twice")
        answers[answer.id] = answer
    return list(answers.values())


Part = tuple[float, float]
"""What an answer adds to numerator and denominator of a score."""


@dataclass(frozen=True)
class Measure:
    """A corpus-level score: a ratio of sums over answers, so that each has intervals and paired tests.

    Attributes:
        of: what an answer adds; None where the score says nothing about it.
        rate: a share, shown in percent; otherwise a plain number.
    """

    key: str
    name: str
    of: Callable[[Answer], Part | None]
    higher_is_better: bool = True
    rate: bool = True
    digits: int = 2

    def counted(self, answers: Iterable[Answer]) -> list[tuple[Answer, Part]]:
        """The answers this measure says something about, each with what it adds."""
        return [(answer, part) for answer in answers if (part := self.of(answer)) is not None]

    def interval(self, answers: Iterable[Answer], seed: int = 0) -> Interval | None:
        """Its value with a 95 % bootstrap interval over distinct questions; None if it covers no answer."""
        if not (counted := self.counted(answers)):
            return None
        groups = question_groups([answer for answer, _ in counted])
        return bootstrap_ratio([part for _, part in counted], groups, seed=seed)

    def show(self, value: float) -> str:
        """A value of it."""
        return percent(value) if self.rate else number(value, self.digits)

    def difference(self, value: float) -> str:
        """A difference of two values of it, of rates in percentage points."""
        return points(value) if self.rate else f"{value:+.{self.digits}f}".replace("-", "−")


@cache
def _metric(kind: type[RatioMetric]) -> RatioMetric:
    return kind()


def compared(
    key: str, name: str, metric: type[RatioMetric], prediction: str = "text", reference: str = "reference"
) -> Measure:
    """A measure that compares two fields of an answer, which says something where both are known.

    No right answer, or no words of the question, is told by an empty text; an answer of no words is one.
    """

    def of(answer: Answer) -> Part | None:
        ours, theirs = getattr(answer, prediction), getattr(answer, reference)
        unknown = theirs is None or (theirs == "" and reference != "text")
        return None if unknown or ours is None else _metric(metric).counts(ours, theirs)

    return Measure(key, name, of, bool(metric.higher_is_better))


def rated(key: str, name: str, digits: int = 2) -> Measure:
    """The mean of what a predictor of speech quality, of this name, gives (1 to 5)."""

    def of(answer: Answer) -> Part | None:
        value = (answer.quality or {}).get(name)
        return None if value is None else (value, 1.0)

    return Measure(key, name, of, rate=False, digits=digits)


MEASURES: tuple[Measure, ...] = (
    compared("wer", "WER", WordErrorRate),
    compared("cer", "CER", CharErrorRate),
    compared("exact_match", "Exact match", ExactMatch),
    compared("rouge_l", "ROUGE-L", RougeL),
    compared("unit_error_rate", "Unit error rate", UnitErrorRate, "units", "reference_units"),
    compared("heard_wer", "WER of the words heard", WordErrorRate, "heard", "question"),
    # ASR-WER and ASR-CER: how much of the answer's own text can be understood (LLaMA-Omni, section 4.3).
    compared("asr_wer", "ASR-WER of the speech against its text", WordErrorRate, "spoken", "text"),
    compared("asr_cer", "ASR-CER of the speech against its text", CharErrorRate, "spoken", "text"),
)


def words_per_second(answers: Iterable[Answer]) -> float | None:
    """Words of the spoken answers by their length; None if nothing was spoken."""
    spoken = [answer for answer in answers if answer.reply_seconds]
    words = sum(len(speech_words(answer.text)) for answer in spoken)
    return words / sum(answer.reply_seconds or 0.0 for answer in spoken) if spoken else None


def question_groups(answers: Iterable[Answer]) -> list[Hashable]:
    """One group per distinct question: the same words at another speed or voice are not a new observation.

    A question whose words are not known is told by its sound, or by its id.
    """
    return [answer_tokens(a.question) or a.question.strip() or a.audio or a.id for a in answers]


def cut_answers(answers: Iterable[Answer]) -> int | None:
    """How many were cut off at the longest answer allowed; None where nobody looked."""
    known = [not answer.stopped for answer in answers if answer.stopped is not None]
    return sum(known) if known else None


def normalisers(answers: Iterable[Answer]) -> str:
    """How the texts of the error rates were normalised and what counts as a word, in one sentence for a table."""
    kinds = sorted({is_english(answer.reference) for answer in answers}, reverse=True)
    used = "; ".join({True: f"{ENGLISH} (words)", False: f"other scripts: {OTHERS}"}[kind] for kind in kinds)
    return f"WER and CER after {used}. Exact match and ROUGE-L keep signs, brackets and fillers." if used else ""


def score(answers: Sequence[Answer], seed: int = 0) -> dict[str, Interval]:
    """Scores of a system with 95 % bootstrap intervals over distinct questions.

    Keys: those of `MEASURES` (fractions, not percent), the names of predictors of speech quality (mean, 1 to 5) and
    `seconds` (median per answer). A measure that covers no
    answer is left out; unit error rate, for instance, is there only for systems that predict units.
    """
    measures = [*MEASURES, *(rated(name, name) for name in quality_names(answers))]
    scores = {measure.key: found for measure in measures if (found := measure.interval(answers, seed))}
    timed = [answer for answer in answers if answer.seconds is not None]
    if timed:
        seconds = [float(answer.seconds or 0.0) for answer in timed]
        scores["seconds"] = bootstrap_median(seconds, question_groups(timed), seed=seed)
    return scores


def quality_names(answers: Iterable[Answer]) -> list[str]:
    """Names of the predictors of speech quality that scored any of the answers."""
    return sorted({name for answer in answers for name in answer.quality or ()})


def score_by(
    answers: Sequence[Answer], key: Callable[[Answer], Hashable | None], seed: int = 0
) -> dict[Hashable, dict[str, Interval]]:
    """`score` of each group that `key` forms, in order of first appearance; answers with key None are left out.

    `score_by(answers, lambda a: a.kind)` breaks down by kind, `lambda a: a.seen` by seen and unseen.
    """
    groups: dict[Hashable, list[Answer]] = {}
    for answer in answers:
        name = key(answer)
        if name is not None:
            groups.setdefault(name, []).append(answer)
    return {name: score(group, seed) for name, group in groups.items()}
