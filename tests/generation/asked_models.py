"""Tiny models that stream, a vocoder whose sound shows its units, and what both are asked."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from speechzoo.adaptors import ConcatMLP
from speechzoo.data import encode_batch
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.text import ChatPrompt
from speechzoo.units import CTCUnitDecoder
from speechzoo.vocoders import Vocoder

DECODER = partial(CTCUnitDecoder, num_units=12, upsample=3, dim=16, num_layers=2, num_heads=2, ffn_dim=32)


class Square(Vocoder):
    """Ten samples of the unit's own value per unit, in pieces of `chunk_units` and what is left."""

    sample_rate = 100

    def __init__(self, num_units: int = 12) -> None:
        super().__init__()
        self.num_units = num_units

    def encode(self, units):
        raise NotImplementedError

    render = encode

    def forward(self, units):
        return units.repeat_interleave(10) / 12

    def stream(self, chunk_units, context_units=None):
        return SquareStream(self, chunk_units)


class SquareStream:
    def __init__(self, vocoder: Square, chunk_units: int) -> None:
        self.vocoder, self.chunk_units, self.kept = vocoder, chunk_units, torch.zeros(0, dtype=torch.long)

    def push(self, units):
        self.kept = torch.cat([self.kept, units])
        return self.flush() if len(self.kept) >= self.chunk_units else torch.zeros(0)

    def flush(self):
        wave, self.kept = self.vocoder(self.kept), self.kept[:0]
        return wave


def tone(seconds: float, pitch: float) -> torch.Tensor:
    t = torch.arange(int(16_000 * seconds)) / 16_000
    return 0.5 * torch.sin(2 * torch.pi * pitch * t * (1 + t))


def asked(*parts) -> list[dict]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "audio", "array": p} for p in parts]
    return [{"role": "user", "content": content}]


QUESTIONS = [
    asked(tone(0.9, 200)),
    asked("compare", tone(0.5, 300), "with", tone(1.3, 150)),
    asked("What is the capital of France?"),
]


def make(cls, llm: Path, whisper: Path, window: str = "trimmed", **more):
    torch.manual_seed(0)
    model = cls(
        encoder=partial(WhisperEncoder, model=str(whisper), window=window),
        adaptor=partial(ConcatMLP, stack=5, hidden_dim=24),
        llm=partial(HFCausalLM, model=str(llm)),
        prompt=partial(ChatPrompt, tokenizer=str(llm)),
        **more,
    )
    model.configure_model()
    if isinstance(getattr(model, "unit_decoder", None), CTCUnitDecoder):
        with torch.no_grad():
            model.unit_decoder.input_proj.weight *= 4  # initial logits are nearly flat
            for layer in model.unit_decoder.transformer.layers:
                for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.o_proj):
                    part.weight *= 30
    return model.eval()


def batch_of(model, questions):
    return encode_batch(model.prompt, questions)


def a_stop(model, questions) -> list[int]:
    """A token that ends the questions' greedy answers at different lengths."""
    batch = batch_of(model, questions)
    rows = model.answer_ids(batch, *model.encode(batch), max_new_tokens=12, eos_token_id=[])
    for token in rows[0][2:].tolist():
        ends = [row.tolist().index(token) if token in row else 12 for row in rows]
        if len(set(ends)) > 1:
            return [token]
    raise AssertionError("the tiny model says the same to all questions")
