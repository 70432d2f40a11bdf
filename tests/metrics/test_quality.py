"""Predicted quality of speech: what the predictors are given, what they refuse, and Distill-MOS's real weights."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from speechzoo.audio import write_audio
from speechzoo.evaluation.answers import Answer, load_answers, save_answers, score
from speechzoo.evaluation.compare import SystemResult, comparison_table
from speechzoo.evaluation.listening import rate
from speechzoo.metrics import UTMOS, DistillMOS, quality_scorers
from speechzoo.parts.registry import cache_folder

REAL_CACHE = cache_folder()  # the user's, read before the tests get a cache of their own
HUBCONF = """
import torch
def utmos22_strong():
    return lambda wave, rate: wave.abs().max() + wave.shape[1] / rate
"""


@pytest.fixture
def utmos(tmp_path: Path) -> UTMOS:
    """The interface of tarepan/SpeechMOS: loudness plus seconds instead of its network."""
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    return UTMOS(tmp_path)


def test_any_rate_is_heard_at_16_khz(utmos: UTMOS) -> None:
    wave = torch.sin(torch.arange(22_050) / 10) / 2
    assert utmos(wave, 22_050) == pytest.approx(0.5 + 1.0, abs=0.01)
    assert utmos(wave, 16_000) == pytest.approx(0.5 + 22_050 / 16_000, abs=0.01)


def test_what_has_no_quality_is_refused(utmos: UTMOS) -> None:
    for wave in (torch.zeros(0), torch.zeros(800), torch.tensor([0.1, float("nan")])):
        with pytest.raises(ValueError, match="empty, silent or not finite"):
            utmos(wave, 16_000)
    with pytest.raises(ValueError, match="one channel"):
        utmos(torch.ones(2, 800), 16_000)


def test_what_is_there_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distillmos", None)
    monkeypatch.delenv("SPEECHZOO_UTMOS", raising=False)
    assert quality_scorers() == []
    monkeypatch.setenv("SPEECHZOO_UTMOS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="clone of tarepan/SpeechMOS"):
        quality_scorers()
    (tmp_path / "hubconf.py").write_text(HUBCONF)
    assert [scorer.name for scorer in quality_scorers()] == ["UTMOS"]


def test_no_torchaudio_is_needed_and_none_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, package = [], ModuleType("distillmos")

    def model() -> torch.nn.Module:
        seen.append(sys.modules["torchaudio"])
        return torch.nn.Flatten(0)

    package.ConvTransformerSQAModel = model
    monkeypatch.setitem(sys.modules, "distillmos", package)
    monkeypatch.setitem(sys.modules, "torchaudio", None)  # as if it were not installed
    DistillMOS()
    assert seen and not isinstance(sys.modules.get("torchaudio"), ModuleType)


def test_from_the_sound_to_the_table(utmos: UTMOS, tmp_path: Path) -> None:
    """A silent answer has no score and does not pull the mean down."""
    for name, level, seconds in (("a", 0.5, 1), ("b", 0.25, 2), ("c", 0.0, 1)):
        write_audio(tmp_path / f"{name}.flac", np.full(16_000 * seconds, level, dtype=np.float32))
    answers = [Answer(i, "sum", f"question {i}", "one", "one", reply_audio=f"{i}.flac") for i in "abc"]
    answers.append(Answer("d", "sum", "question d", "one", "one"))
    rated = [rate(answer, tmp_path, [utmos]) for answer in answers]
    assert [None if a.quality is None else round(a.quality["UTMOS"], 2) for a in rated] == [1.5, 2.25, None, None]
    save_answers(tmp_path / "answers.jsonl", rated)
    rated = load_answers(tmp_path / "answers.jsonl")
    assert score(rated)["UTMOS"].value == pytest.approx(1.875, abs=0.01)
    silent = [Answer("a", "sum", "question a", "one", "one")]
    table = comparison_table([SystemResult("speaks", rated), SystemResult("writes", silent)]).to_markdown()
    (row,) = (line for line in table.splitlines() if "UTMOS" in line)
    assert "1.88" in row and "1.50" in row and "2.25" in row


@pytest.mark.real
def test_noise_makes_real_speech_sound_worse() -> None:
    """With the weights of Distill-MOS."""
    pytest.importorskip("xls_r_sqa", reason="pip install --no-deps distillmos xls-r-sqa")
    from speechzoo.parts.registry import fetch
    from speechzoo.quickstart.voice import PiperVoice

    folder = fetch("piper-joe", REAL_CACHE)
    voice = PiperVoice(folder / "voice.onnx", folder / "voice.onnx.json", fetch("english-lexicon", REAL_CACHE))
    wave = torch.from_numpy(voice.speak("The capital of Peru is Lima."))
    scorer = DistillMOS()
    torch.manual_seed(0)
    clean = scorer(wave, voice.sample_rate)
    noisy = scorer(wave + 0.05 * torch.randn(len(wave)), voice.sample_rate)
    assert 3.0 < clean < 5.0 and 1.0 < noisy < clean - 1.0
