"""Scores of text answers: word and character error rate, exact match, ROUGE-L."""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

import torch
from torchmetrics.functional.text import rouge_score

from speechzoo.metrics.normalise import Normaliser, answer_tokens, joined, speech_words
from speechzoo.metrics.ratio import RatioMetric, edit_distance


class _TextRatio(RatioMetric):
    """A ratio over pairs of strings.

    Args:
        normalise: "auto" is that of the metric, see its docstring; a function is applied to prediction and reference
            before they are compared; None compares them as they are. With the latter two, blanks part the words.
    """

    def __init__(self, normalise: Normaliser | Literal["auto"] | None = "auto", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalise = normalise

    def _clean(self, text: str) -> str:
        return self.normalise(text) if callable(self.normalise) else text


class WordErrorRate(_TextRatio):
    """Word edits divided by reference words, both summed over the corpus; may exceed 1.

    An empty answer counts all its reference words as deleted; an empty reference adds insertions and no words.
    Normalisation and words are those of `speech_words`: Whisper's English normaliser where the reference is in Latin
    letters, its basic one elsewhere; Chinese, Japanese, Thai ... by character (mixed error rate).
    """

    higher_is_better = False

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        words = self._words(reference, reference)
        return edit_distance(words, self._words(prediction, reference)), len(words)

    def _words(self, text: str, reference: str) -> list[str]:
        return speech_words(text, reference) if self.normalise == "auto" else self._clean(text).split()


class CharErrorRate(_TextRatio):
    """Character edits divided by reference characters, both summed over the corpus; may exceed 1.

    Normalised as for `WordErrorRate`. Blanks between words count, beside Chinese, Japanese, Thai ... there are none.
    """

    higher_is_better = False

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        characters = self._characters(reference, reference)
        return edit_distance(characters, self._characters(prediction, reference)), len(characters)

    def _characters(self, text: str, reference: str) -> str:
        return joined(speech_words(text, reference)) if self.normalise == "auto" else self._clean(text)


class ExactMatch(_TextRatio):
    """Share of answers that equal their reference after normalisation, which is that of `answer_tokens`.

    Two texts of which nothing is left are the same only if they are so as they were written.
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        if self.normalise != "auto":
            return int(self._clean(prediction) == self._clean(reference)), 1
        ours, theirs = answer_tokens(prediction), answer_tokens(reference)
        if not ours and not theirs:
            return int(_plain(prediction) == _plain(reference)), 1
        return int(ours == theirs), 1


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).split())


class RougeL(_TextRatio):
    """Mean over items of ROUGE-L's F-measure (longest common subsequence of tokens), without stemming.

    Tokens are those of `answer_tokens`: words, numbers and signs; in Chinese, Japanese, Thai ... characters. The score
    of one item is `torchmetrics.functional.text.rouge_score`; nothing is downloaded (only its `rougeLsum` needs nltk
    data). An empty answer or an empty reference scores 0.
    """

    higher_is_better = True
    plot_upper_bound = 1.0
    numerator_dtype = torch.float32

    def counts(self, prediction: str, reference: str) -> tuple[float, int]:
        scores = rouge_score(prediction, reference, rouge_keys="rougeL", normalizer=self._clean, tokenizer=self._tokens)
        return float(scores["rougeL_fmeasure"]), 1

    def _tokens(self, text: str) -> list[str]:
        return list(answer_tokens(text)) if self.normalise == "auto" else text.split()
