"""Every adaptor with every encoder, inside a model: lengths, independence of the batch, gradients to both."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from test_models import CONVERSATIONS, parts
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model

from speechzoo.adaptors import ConcatMLP, Conv, CrossAttention, Linear, MeanPool, QFormer, StackSwiGLU
from speechzoo.data import encode_batch
from speechzoo.encoders import HFSpeechEncoder, WhisperEncoder, WhisperQueries
from speechzoo.models import LLaSM

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
