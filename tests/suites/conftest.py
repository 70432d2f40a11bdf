"""A tiny LLaMA-Omni that speaks, and questions for it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_vocoders import GENERATOR, NET, NUM_UNITS

from speechzoo.adaptors import ConcatMLP
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.suites import systems
from speechzoo.talk.sources import Talker
from speechzoo.text import ChatPrompt
from speechzoo.units import CTCUnitDecoder
from speechzoo.vocoders import LatentVocoder


@pytest.fixture(scope="session")
def omni(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> LLaMAOmni:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        decoder = {"num_units": NUM_UNITS, "upsample": 3, "dim": 16, "num_layers": 1, "num_heads": 2, "ffn_dim": 32}
        model = LLaMAOmni(
            encoder=partial(WhisperEncoder, model=str(tiny_whisper_pt), window="trimmed"),
            adaptor=partial(ConcatMLP, stack=5, hidden_dim=16),
            llm=partial(HFCausalLM, model=str(tiny_llm_dir)),
            prompt=partial(ChatPrompt, tokenizer=str(tiny_llm_dir), max_length=300),
            unit_decoder=partial(CTCUnitDecoder, **decoder),
        )
        model.configure_model()
        with torch.no_grad():  # an untrained path is nearly constant otherwise
            model.unit_decoder.input_proj.weight *= 20
    return model.eval()


@pytest.fixture
def opened(omni: LLaMAOmni, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Any folder holds the tiny model, with a vocoder; the names it was opened by."""
    names: list[str] = []

    def open_talker(source: str, *_: object) -> Talker:
        names.append(source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            vocoder = LatentVocoder(NET, GENERATOR, sample_rate=8000).eval()
        return Talker(source, omni, {"vocoder": vocoder})

    monkeypatch.setattr(systems, "open_talker", open_talker)
    return names


@pytest.fixture
def questions(tmp_path: Path, wavs: list[Path]) -> Path:
    """Four spoken questions and a written one."""
    rows = [
        {"id": f"q{n}", "audio": str(wav), "question": f"question {n}?", "reference": "Paris" if n else "London"}
        for n, wav in enumerate(wavs)
    ]
    rows.append({"id": "w", "question": "Written question?", "reference": "Paris", "kind": "written"})
    file = tmp_path / "asked.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What a model is told by: any file in it is its content."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder
