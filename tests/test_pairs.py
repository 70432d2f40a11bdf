"""Parts inside a model, every adaptor with every encoder, and every unit decoder: lengths, gradients, independence of
the batch, streamed = offline."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from test_models import CONVERSATIONS, SMALL_DECODER, SMALL_WRITER, parts
from torch import nn
from torch.nn import functional as F
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from speechzoo.adaptors import ConcatMLP, Conv, CrossAttention, Linear, MeanPool, QFormer, StackSwiGLU
from speechzoo.data import encode_batch
from speechzoo.encoders import HFSpeechEncoder, WhisperEncoder, WhisperQueries
from speechzoo.generation.units import UnitStream
from speechzoo.models import LLaMAOmni, LLaMAOmni2, LLaSM
from speechzoo.types import UnitDelta
from speechzoo.units import UnitDecoder, UnitOutput

ADAPTORS = {
    "linear": partial(Linear, stack=4),
    "concat": partial(ConcatMLP, stack=5, hidden_dim=24),
    "conv": partial(Conv, hidden_dim=16),
    "mean": MeanPool,
    "swiglu": partial(StackSwiGLU, hidden_dim=24),
    "qformer": partial(QFormer, queries=2, dim=16, num_heads=2, ffn_dim=24),
    "attention": partial(CrossAttention, num_heads=2, hidden_dim=24),
}
ENCODERS = ("whisper", "whisper layer", "queries", "wav2vec2", "wav2vec2 mix")


@pytest.fixture(scope="session")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wav2vec2")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    small = {"conv_dim": (8,) * 7, "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(**sizes, **small)).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(return_attention_mask=False).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("adaptor", sorted(ADAPTORS))
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_pair_obeys_the_laws(
    tiny_llm_dir: Path, tiny_whisper_pt: Path, wav2vec2: Path, encoder: str, adaptor: str
) -> None:
    made = {
        "whisper": partial(WhisperEncoder, model=str(tiny_whisper_pt), window="trimmed"),
        "whisper layer": partial(WhisperEncoder, model=str(tiny_whisper_pt), window="trimmed", layer=1),
        "queries": partial(WhisperQueries, model=str(tiny_whisper_pt), num_queries=40, start_token=3),
        "wav2vec2": partial(HFSpeechEncoder, model=str(wav2vec2)),
        "wav2vec2 mix": partial(HFSpeechEncoder, model=str(wav2vec2), layer="mix"),
    }
    torch.manual_seed(0)
    model = LLaSM(**parts(tiny_llm_dir, tiny_whisper_pt, encoder=made[encoder], adaptor=ADAPTORS[adaptor]))
    model.configure_model()
    model.eval()
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "right")
    speech, lens = model.encode(batch)
    assert lens.equal(model.audio_positions(batch.audio_lens)) and speech.shape[1] == int(lens.max()) > 0
    out = model(batch)
    alone = sum(model(encode_batch(model.prompt, [c], True, "right")).sums["lm"] for c in CONVERSATIONS)
    torch.testing.assert_close(out.sums["lm"], alone, atol=0, rtol=1e-5)
    out.sums["lm"].backward()
    for part in (model.encoder, model.adaptor):
        assert any(weight.grad is not None and weight.grad.any() for weight in part.parameters())


class Plain(UnitDecoder):
    """A user's decoder, which knows nothing of tokens: one unit a state, and no symbol of its own but the last."""

    def __init__(self, in_dim: int, num_units: int = 12) -> None:
        super().__init__()
        self.num_units, self.align, self.proj = num_units, "predict", nn.Linear(in_dim, num_units + 1)

    def forward(self, states, lens, units=None, unit_lens=None):
        logits = self.proj(states)
        if units is None:
            return UnitOutput(logits, lens)
        size = min(logits.shape[1], units.shape[1])
        inside = torch.arange(size) < torch.minimum(lens, unit_lens)[:, None]
        loss = F.cross_entropy(logits[:, :size].transpose(1, 2), units[:, :size].clamp(min=0), reduction="none")
        return UnitOutput(logits, lens, (loss * inside).sum(), torch.zeros_like(lens, dtype=torch.bool))

    def decode(self, states, lens):
        return self.stream(len(lens)).push(states, lens)

    def stream(self, rows):
        return PlainStream(self, rows)


class PlainStream(UnitStream):
    def __init__(self, decoder: Plain, rows: int) -> None:
        self.decoder, self.rows = decoder, rows

    @torch.no_grad()
    def push(self, states, lens=None):
        assert len(states) == self.rows
        best = self.decoder.proj(states)[..., :-1].argmax(-1)
        return [row[:n] for row, n in zip(best, [states.shape[1]] * self.rows if lens is None else lens, strict=True)]

    def keep(self, rows):
        self.rows = len(rows)


DECODERS = {
    "ctc": (LLaMAOmni, SMALL_DECODER),
    "ctc label": (LLaMAOmni, partial(SMALL_DECODER, align="label")),
    "written": (LLaMAOmni2, SMALL_WRITER),
    "written, text alone": (LLaMAOmni2, partial(SMALL_WRITER, fuse=False)),
    "own": (LLaMAOmni, Plain),
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_unit_decoder_obeys_the_laws(tiny_llm_dir: Path, tiny_whisper_pt: Path, name: str) -> None:
    """Also a user's own with the signature that needs no tokens."""
    architecture, decoder = DECODERS[name]
    torch.manual_seed(0)
    model = architecture(**parts(tiny_llm_dir, tiny_whisper_pt, unit_decoder=decoder))
    model.configure_model()
    model.eval()
    with torch.no_grad():
        for weight in model.unit_decoder.parameters():
            weight *= 1 if weight.dim() < 2 else 8  # initial logits are nearly flat
    loss = model.unit_loss
    batch = encode_batch(model.prompt, CONVERSATIONS, True, "left")
    out = model(batch)
    alone = sum(model(encode_batch(model.prompt, [c], True, "right")).sums[loss] for c in CONVERSATIONS)
    torch.testing.assert_close(out.sums[loss], alone, atol=0, rtol=1e-5)
    out.sums[loss].backward()
    learned = [n for n, p in model.unit_decoder.named_parameters() if p.grad is not None and p.grad.any()]
    unasked = ("input_proj", "gate") if "alone" in name else ()
    assert learned == [n for n, _ in model.unit_decoder.named_parameters() if not n.startswith(unasked or "-")]

    asked = encode_batch(model.prompt, CONVERSATIONS)
    reply = model.respond(asked, max_new_tokens=9, eos_token_id=[])
    assert sum(map(len, reply.units)) > 9
    heard: list[list[int]] = [[] for _ in CONVERSATIONS]
    for event in model.stream(asked, max_new_tokens=9, eos_token_id=[], chunk_units=2):
        if isinstance(event, UnitDelta):
            heard[event.row] += event.units.tolist()
    assert heard == [units.tolist() for units in reply.units]
    assert len(model.units_of_answers(batch)) == len(batch.units)


@pytest.mark.parametrize(("architecture", "decoder"), [(LLaMAOmni, SMALL_WRITER), (LLaMAOmni2, SMALL_DECODER)])
def test_targets_that_are_not_counted_are_refused(tiny_llm_dir, tiny_whisper_pt, architecture, decoder) -> None:
    """The ends that a decoder writes are targets; CTC has none."""
    model = architecture(**parts(tiny_llm_dir, tiny_whisper_pt, unit_decoder=decoder))
    with pytest.raises(ValueError, match=f"whose targets {architecture.__name__} does not count"):
        model.configure_model()
