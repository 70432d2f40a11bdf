"""Scores of text answers: word and character error rate, exact match, ROUGE-L."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torchmetrics.functional.text import rouge_score

from speechzoo.metrics.ratio import RatioMetric, edit_distance

Normaliser = Callable[[str], str]


@lru_cache(maxsize=1)
def _english() -> Normaliser:
    # Here and not above: importing whisper takes a second that command-line help should not pay.
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


def normalise_english(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, numbers as digits, British to American spelling.

    Source: `whisper.normalizers.EnglishTextNormalizer` (appendix C of the Whisper paper), with runs of blanks joined.
    It is the field's standard, so its habits are kept: "six plus nine" becomes "6 +9", two words.
    """
    return " ".join(_english()(text).split())


class _TextRatio(RatioMetric):
    """A ratio over pairs of strings.

    Args:
        normalise: applied to prediction and reference before they are compared; None compares them as they are.
    """

    def __init__(self, normalise: Normaliser | None = normalise_english, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalise = normalise

    def _clean(self, text: str) -> str:
        return text if self.normalise is None else self.normalise(text)


class WordErrorRate(_TextRatio):
    """Word edits divided by reference words, both summed over the corpus; may exceed 1.

    An empty answer counts all its reference words as deleted; an empty reference adds insertions and no words.
    """

    higher_is_better = False

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        words = self._clean(reference).split()
        return edit_distance(words, self._clean(prediction).split()), len(words)


class CharErrorRate(_TextRatio):
    """Character edits (blanks count) divided by reference characters, both summed over the corpus; may exceed 1."""

    higher_is_better = False

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        characters = self._clean(reference)
        return edit_distance(characters, self._clean(prediction)), len(characters)


class ExactMatch(_TextRatio):
    """Share of answers that equal their reference after normalisation."""

    higher_is_better = True
    plot_upper_bound = 1.0

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        return int(self._clean(prediction) == self._clean(reference)), 1


class RougeL(_TextRatio):
    """Mean over items of ROUGE-L's F-measure (longest common subsequence of words), without stemming.

    The score of one item is `torchmetrics.functional.text.rouge_score`; nothing is downloaded (only its `rougeLsum`
    needs nltk data). An empty answer or an empty reference scores 0.
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    numerator_dtype = torch.float32

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        scores = rouge_score(self._clean(prediction), self._clean(reference), use_stemmer=False, rouge_keys="rougeL")
        return float(scores["rougeL_fmeasure"]), 1
