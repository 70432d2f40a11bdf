"""Text and unit scores against jiwer, torchmetrics and cases worked by hand."""

from __future__ import annotations

import math
import pickle

import jiwer
import pytest
import torch
import torchmetrics.text
from hypothesis import given
from hypothesis import strategies as st

from speechzoo.metrics import CharErrorRate, ExactMatch, RougeL, UnitErrorRate, WordErrorRate, normalise_english
from speechzoo.types import IGNORE

SENTENCES = st.lists(
    st.tuples(st.text("ab c", max_size=12), st.text("ab c", min_size=1, max_size=12).filter(str.strip)), min_size=1
)


def score(metric, predictions, references) -> float:
    metric.update(predictions, references)
    return metric.compute().item()


def test_english_normalisation():
    assert normalise_english("  The answer is FIFTEEN!\n") == "the answer is 15"
    assert normalise_english("Six plus nine") == "6 +9"  # Whisper reads a sign there
    assert normalise_english("It's the colour, Mr. Smith.") == "it is the color mister smith"
    assert normalise_english("[noise] !?") == ""


@given(SENTENCES)
def test_error_rates_agree_with_jiwer_and_torchmetrics(pairs):
    predictions, references = [" ".join(p.split()) for p, _ in pairs], [" ".join(r.split()) for _, r in pairs]
    wer = score(WordErrorRate(normalise=None), predictions, references)
    cer = score(CharErrorRate(normalise=None), predictions, references)
    assert wer == pytest.approx(jiwer.wer(references, predictions), rel=1e-6)
    assert cer == pytest.approx(jiwer.cer(references, predictions), rel=1e-6)
    assert wer == pytest.approx(score(torchmetrics.text.WordErrorRate(), predictions, references), rel=1e-6)
    assert cer == pytest.approx(score(torchmetrics.text.CharErrorRate(), predictions, references), rel=1e-6)


def test_word_error_rate_pools_words_over_batches():
    metric = WordErrorRate()
    metric.update(["one"], ["two"])  # 1 of 1
    metric.update(["a b c d e f g h i"], ["a b c d e f g h i"])  # 0 of 9
    assert metric.compute().item() == pytest.approx(0.1)  # the mean of the batches would be 0.5


def test_normalisation_decides_what_is_an_error():
    assert score(WordErrorRate(), ["Paris is in France."], ["paris is in FRANCE"]) == 0
    assert score(WordErrorRate(normalise=None), ["Paris is in France."], ["paris is in FRANCE"]) == 0.5
    assert score(ExactMatch(), ["It is 15!", "no"], ["it's fifteen", "yes"]) == 0.5


@pytest.mark.parametrize("metric", [WordErrorRate, CharErrorRate, ExactMatch, RougeL, UnitErrorRate])
@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_without_data_the_value_is_nan(metric):
    assert math.isnan(metric().compute())
    empty = metric()
    empty.update([], [])
    assert math.isnan(empty.compute())


def test_empty_strings():
    assert score(WordErrorRate(), ["", "a b"], ["c d e", "a b"]) == pytest.approx(3 / 5)
    assert score(WordErrorRate(), ["x y", "a b"], ["", "a b"]) == 1.0  # two insertions over two words
    assert math.isnan(score(WordErrorRate(), ["x"], [""]))
    assert score(ExactMatch(), [""], [""]) == 1
    assert score(RougeL(), ["", "a", ""], ["a", "", ""]) == 0


def test_rouge_l_by_hand():
    # longest common subsequence "the cat the mat" = 4; precision 4/5, recall 4/6
    assert score(RougeL(), ["the cat near the mat"], ["the cat sat on the mat"]) == pytest.approx(2 * 4 / (5 + 6))


def test_unit_error_rate():
    metric = UnitErrorRate()
    metric.update([[1, 2, 3], torch.tensor([0, 0, IGNORE])], [torch.tensor([1, 3, IGNORE]), [0, 5]])
    assert metric.compute().item() == pytest.approx(2 / 4)  # unit 0 is a unit; padding is not
    assert score(UnitErrorRate(), [[]], [[4, 5]]) == 1


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        WordErrorRate().update(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="single string"):
        WordErrorRate().update("hello", "hello")


def test_pickles_with_its_state():
    metric = WordErrorRate()
    metric.update(["a b"], ["a c"])
    assert pickle.loads(pickle.dumps(metric)).compute() == 0.5
