"""Whisper's transcriptions in a cascade: a loop is heard again, the others are left alone."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch

from speechzoo.llms import HFCausalLM
from speechzoo.models import Cascade, cascade
from speechzoo.text import ChatPrompt


def test_a_transcription_that_repeats_itself_is_made_again(tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch):
    asked: list[tuple[float, list[int], float]] = []

    def decode(net, mel, options):
        """The first clip loops until a temperature of 0.4, the third always."""
        clips = [int(row.mean() > 0) for row in mel]
        asked.append((options.temperature, clips, float(torch.rand(()))))
        said = {0: "fine", 1: "loop" if options.temperature < 0.4 else "again"}
        return [
            SimpleNamespace(text=f" {said[c]} ", compression_ratio=9.0 if said[c] == "loop" else 1.0) for c in clips
        ]

    monkeypatch.setattr(cascade, "decode", decode)
    # The sign of the mel says which clip it is.
    monkeypatch.setattr(cascade, "log_mel", lambda audio, lens, mels: (audio[:, None, :1].expand(-1, 2, 4), lens))
    model = Cascade(
        str(tiny_whisper_pt),
        partial(HFCausalLM, model=str(tiny_llm_dir)),
        partial(ChatPrompt, tokenizer=str(tiny_llm_dir)),
    )
    audio, lens = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]]), torch.tensor([2, 2, 2])
    torch.manual_seed(5)
    expected = torch.rand(())
    torch.manual_seed(5)
    assert model.transcribe(audio, lens) == ["again", "fine", "again"]
    assert torch.rand(()) == expected  # the caller's random numbers are untouched
    assert [(temperature, clips) for temperature, clips, _ in asked] == [(0.0, [1, 0, 1]), (0.2, [1, 1]), (0.4, [1, 1])]
    drawn = [number for _, _, number in asked]
    asked.clear()
    model.transcribe(audio, lens)
    assert [number for _, _, number in asked] == drawn  # the same clips, the same texts


def test_a_clip_that_always_loops_ends(tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch):
    tried: list[float] = []

    def decode(net, mel, options):
        tried.append(options.temperature)
        return [SimpleNamespace(text="loop", compression_ratio=9.0) for _ in mel]

    monkeypatch.setattr(cascade, "decode", decode)
    model = Cascade(
        str(tiny_whisper_pt),
        partial(HFCausalLM, model=str(tiny_llm_dir)),
        partial(ChatPrompt, tokenizer=str(tiny_llm_dir)),
    )
    assert model.transcribe(torch.zeros(1, 1600), torch.tensor([1600])) == ["loop"]
    assert tried == list(cascade.TEMPERATURES)
