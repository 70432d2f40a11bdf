"""Saving a model that was trained: it comes back as it was, and a trained import goes out in the released layout."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from released import llasm

import speechzoo
from speechzoo.adaptors import ConcatMLP
from speechzoo.encoders import WhisperEncoder
from speechzoo.interop import export_llasm, import_llasm
from speechzoo.interop.layout import Weights
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO, SpeechBatch
from speechzoo.units import CTCUnitDecoder


def build(llm_dir, whisper, lora=None, freeze=("^encoder\\.",)) -> LLaMAOmni:
    torch.manual_seed(0)
    model = LLaMAOmni(
        encoder=partial(WhisperEncoder, model=str(whisper)),
        adaptor=partial(ConcatMLP, stack=10, hidden_dim=16),
        llm=partial(HFCausalLM, model=str(llm_dir), lora=lora),
        prompt=partial(ChatPrompt, tokenizer=str(llm_dir), audio_tokens=["<a>", "</a>"]),
        unit_decoder=partial(CTCUnitDecoder, num_units=9, upsample=2, dim=8, num_layers=1, num_heads=2, ffn_dim=8),
        freeze=list(freeze),
    )
    model.configure_model()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # as after training, LoRA's B included
                parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def logits(model) -> torch.Tensor:
    start, end = model.prompt.new_tokens
    ids = torch.tensor([[5, start, AUDIO, end, 9, 10]])
    turns = torch.tensor([[0, 0, 0, 0, 1, 1]])
    audio = 0.1 * torch.sin(torch.arange(16_000) / 9)[None]
    batch = SpeechBatch(ids, torch.ones_like(ids).bool(), turns, audio=audio, audio_lens=torch.tensor([16_000]))
    with torch.no_grad():
        out = model(batch, logits=True)
    return out.logits


@pytest.mark.parametrize("lora", [None, {"r": 2, "lora_alpha": 4}])
@pytest.mark.parametrize("merge", [False, True])
def test_a_trained_model_comes_back(tmp_path, tiny_llm_dir, tiny_whisper_pt, lora, merge):
    model = build(tiny_llm_dir, tiny_whisper_pt, lora)
    speechzoo.save_pretrained(model, tmp_path / "saved", merge_lora=merge)
    again = speechzoo.load(tmp_path / "saved")
    assert again.prompt.new_tokens == model.prompt.new_tokens
    torch.testing.assert_close(logits(again), logits(model), atol=1e-5 if merge and lora else 0, rtol=0)
    assert hasattr(again.llm.lm, "peft_config") == (lora is not None and not merge)
    assert str(tmp_path) not in (tmp_path / "saved" / "config.json").read_text()


def test_rows_of_new_tokens_are_saved_from_a_gpu(tmp_path, tiny_llm_dir, tiny_whisper_pt, monkeypatch):
    """There `cpu()` makes a copy, as it is made to here."""
    model = build(tiny_llm_dir, tiny_whisper_pt)
    monkeypatch.setattr(torch.Tensor, "cpu", torch.Tensor.clone)
    speechzoo.save_pretrained(model, tmp_path / "saved")
    assert torch.equal(speechzoo.load(tmp_path / "saved").llm.new_embeddings, model.llm.new_embeddings)


def test_an_encoder_that_learnt_is_saved_too(tmp_path, tiny_llm_dir, tiny_whisper_pt):
    model = build(tiny_llm_dir, tiny_whisper_pt, freeze=())
    speechzoo.save_pretrained(model, tmp_path / "saved")
    assert torch.equal(logits(speechzoo.load(tmp_path / "saved")), logits(model))


def test_a_trained_import_is_exported_with_its_rows(tmp_path, tiny_whisper_pt):
    state = llasm(tmp_path / "src")
    import_llasm(tmp_path / "src", tiny_whisper_pt, tmp_path / "ours")
    model = speechzoo.load(tmp_path / "ours")
    with torch.no_grad():
        model.llm.new_embeddings.add_(1.0)
        model.adaptor.linear.bias.add_(2.0)
    speechzoo.save_pretrained(model, tmp_path / "trained")
    export_llasm(tmp_path / "trained", tmp_path / "back")
    held = Weights(tmp_path / "back")
    assert set(held) == set(state)
    changed = {name for name in state if not torch.equal(held[name], state[name])}
    assert changed == {"model.embed_tokens.weight", "model.mm_projector.bias"}
    rows = (held["model.embed_tokens.weight"] - state["model.embed_tokens.weight"]).abs().sum(1).nonzero().flatten()
    assert rows.tolist() == model.prompt.new_tokens
