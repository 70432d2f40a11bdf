"""A tiny LLaMA-Omni that speaks, with a vocoder of its units."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from talk_parts import vocoder
from tiny_vocoders import NUM_UNITS

from speechzoo.adaptors import ConcatMLP
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.talk import sources
from speechzoo.talk.sources import Talker
from speechzoo.text import ChatPrompt
from speechzoo.units import CTCUnitDecoder


@pytest.fixture(scope="session")
def omni(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> LLaMAOmni:
    """Answers of 20 or more tokens, with units."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LLaMAOmni(
            encoder=partial(WhisperEncoder, model=str(tiny_whisper_pt), window="trimmed"),
            adaptor=partial(ConcatMLP, stack=5, hidden_dim=16),
            llm=partial(HFCausalLM, model=str(tiny_llm_dir)),
            prompt=partial(ChatPrompt, tokenizer=str(tiny_llm_dir), max_length=300),
            unit_decoder=partial(
                CTCUnitDecoder, num_units=NUM_UNITS, upsample=3, dim=16, num_layers=1, num_heads=2, ffn_dim=32
            ),
        )
        model.configure_model()
        with torch.no_grad():  # an untrained path is nearly constant otherwise
            model.unit_decoder.input_proj.weight *= 20
    return model.eval()


@pytest.fixture
def talker(omni: LLaMAOmni) -> Talker:
    """The tiny LLaMA-Omni with its vocoder."""
    return Talker("omni", omni, {"vocoder": vocoder(), "chunk_units": 4})


@pytest.fixture
def loads(omni: LLaMAOmni, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any run folder holds the tiny model: what `load` reads has its own tests."""
    monkeypatch.setattr(sources, "load", lambda path, trust_code=False: omni)
