"""The columns of a suite's table: each a ratio of sums over questions, so that all have intervals and paired tests."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache, partial

from speechzoo.evaluation.answers import Answer, Counts, question_groups
from speechzoo.evaluation.tables import number, percent, points
from speechzoo.metrics import CharErrorRate, ExactMatch, Interval, RougeL, WordErrorRate, bootstrap_ratio, speech_words
from speechzoo.metrics.ratio import RatioMetric

Part = tuple[float, float]
"""What an answer adds to numerator and denominator."""


@dataclass(frozen=True)
class Column:
    """A score of a suite, of the same form as `evaluation.answers.Measure`.

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

    def covered(self, answers: Iterable[Answer]) -> list[Answer]:
        """The answers this column says something about."""
        return [answer for answer in answers if self.of(answer) is not None]

    def count(self, answers: Sequence[Answer]) -> Counts:
        """Numerator and denominator of each of the answers, which are covered ones."""
        return [part for answer in answers if (part := self.of(answer)) is not None]

    def show(self, value: float) -> str:
        """A value of it."""
        return percent(value) if self.rate else number(value, self.digits)

    def difference(self, value: float) -> str:
        """A difference of two values of it."""
        return points(value) if self.rate else f"{value:+.{self.digits}f}".replace("-", "−")

    def interval(self, answers: Iterable[Answer], seed: int) -> Interval | None:
        """Its value with a 95 % bootstrap interval over questions; None if it covers no answer."""
        covered = self.covered(answers)
        return bootstrap_ratio(self.count(covered), question_groups(covered), seed=seed) if covered else None


def _score(answer: Answer, key: str) -> Part | None:
    value = (answer.scores or {}).get(key)
    return None if value is None else (value, 1.0)


def _share(answer: Answer, key: str, of: str) -> Part | None:
    scores = answer.scores or {}
    return (scores[key], scores[of]) if key in scores else None


def _quality(answer: Answer, key: str) -> Part | None:
    value = (answer.quality or {}).get(key)
    return None if value is None else (value, 1.0)


@cache
def _metric(kind: type[RatioMetric]) -> RatioMetric:
    return kind()


def _rate(answer: Answer, kind: type[RatioMetric], ours: str, theirs: str) -> Part | None:
    prediction, reference = getattr(answer, ours), getattr(answer, theirs)
    missing = prediction is None or reference is None or (theirs == "reference" and not reference)
    return None if missing else _metric(kind).counts(prediction, reference)


def _speed(answer: Answer) -> Part | None:
    return (len(speech_words(answer.text)), answer.reply_seconds) if answer.reply_seconds else None


def _given(key: str, name: str, higher: bool = True, rate: bool = True) -> Column:
    return Column(key, name, partial(_score, key=key), higher, rate)


def _against(key: str, name: str, kind: type[RatioMetric], ours: str = "text", theirs: str = "reference") -> Column:
    higher = bool(kind.higher_is_better)
    return Column(key, name, partial(_rate, kind=kind, ours=ours, theirs=theirs), higher)


COLUMNS = {
    column.key: column
    for column in (
        _given("s2tif", "S2TIF, 1 to 5", rate=False),
        _given("s2sif", "S2SIF, 1 to 5", rate=False),
        _against("asr_wer", "ASR-WER", WordErrorRate, "spoken", "text"),
        _against("asr_cer", "ASR-CER", CharErrorRate, "spoken", "text"),
        Column("utmos", "UTMOS", partial(_quality, key="UTMOS"), rate=False, digits=4),
        Column("distill_mos", "Distill-MOS", partial(_quality, key="Distill-MOS"), rate=False, digits=4),
        Column("wps", "Words per second", _speed, rate=False),
        _given("s2t", "Reference in the text (S2T)"),
        _given("s2s", "Reference in the speech (S2S)"),
        _given("judged_s2t", "Right by the judge (S2T)"),
        _given("judged_s2s", "Right by the judge (S2S)"),
        _given("same_s2t", "Says the expected sentence (text, local rule)"),
        _given("same_s2s", "Says the expected sentence (speech, local rule)"),
        _given("choice", "Right letter"),
        _given("no_choice", "No letter", higher=False),
        _given("refusal", "Refused"),
        _given("ifeval_strict_prompt", "Strict, prompts"),
        Column("ifeval_strict", "Strict, instructions", partial(_share, key="ifeval_strict", of="ifeval_total")),
        _given("ifeval_loose_prompt", "Loose, prompts"),
        Column("ifeval_loose", "Loose, instructions", partial(_share, key="ifeval_loose", of="ifeval_total")),
        _against("wer", "WER", WordErrorRate),
        _against("cer", "CER", CharErrorRate),
        _against("exact_match", "Exact match", ExactMatch),
        _against("rouge_l", "ROUGE-L", RougeL),
    )
}
