"""A stage that starts from one which stood on other frozen weights is told so."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_models import parts
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaSM, SpeechLLM
from speechzoo.models.checkpoint import load_stages, other_bases
from speechzoo.text import ChatPrompt

FROZEN = ["^encoder\\.", "^llm\\.lm\\."]  # LLaSM's first stage: new tokens learn


@pytest.fixture(scope="module")
def llms(tiny_llm_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The tiny LLM, another of the same shape, and both again with one table for embedding and head."""
    folder, made = tmp_path_factory.mktemp("llms"), {"this": tiny_llm_dir}
    for seed, (name, tied) in enumerate({"other": False, "tied": True, "other_tied": True}.items()):
        config = AutoConfig.from_pretrained(tiny_llm_dir, tie_word_embeddings=tied)
        torch.manual_seed(seed + 1)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(tiny_llm_dir).save_pretrained(folder / name)
        made[name] = folder / name
    return made


def model(llm: Path, whisper: Path, freeze: list[str], init_from: Any = None, **settings: Any) -> SpeechLLM:
    tokens = partial(ChatPrompt, tokenizer=str(llm), audio_tokens=["<au_start>", "<au_end>"])
    part = partial(HFCausalLM, model=str(llm), **settings)
    torch.manual_seed(0)
    made = LLaSM(**parts(llm, whisper, freeze=freeze, init_from=init_from, llm=part, prompt=tokens))
    made.configure_model()
    return made


def saved(trained: SpeechLLM) -> dict[str, Any]:
    held: dict[str, Any] = {"state_dict": trained.state_dict(), "hyper_parameters": dict(trained.hparams)}
    trained.on_save_checkpoint(held)
    return held


@pytest.mark.parametrize(
    ("kind", "freeze", "earlier", "later"),
    [
        ("", FROZEN, {}, {}),
        ("", FROZEN, {}, {"lora": {"r": 2}}),
        ("tied", FROZEN, {}, {"lora": {"r": 2, "target_modules": ["q_proj", "lm_head"]}}),
        ("", ["^encoder\\."], {"lora": {"r": 2}}, {"lora": {"r": 2}}),
        ("tied", ["^encoder\\.", "^llm\\.lm\\.(?!model.embed_tokens)"], {}, {}),
        ("", FROZEN, {"dtype": "bfloat16"}, {}),
    ],
)
def test_another_llm_of_the_same_shape_is_told(
    llms: dict[str, Path], tiny_whisper_pt: Path, kind: str, freeze: list[str], earlier: Any, later: Any
) -> None:
    this, other = (llms["tied"], llms["other_tied"]) if kind else (llms["this"], llms["other"])
    held = saved(model(this, tiny_whisper_pt, freeze, **earlier))
    assert other_bases(model(this, tiny_whisper_pt, ["^encoder\\."], **later), held) == []
    (found,) = other_bases(model(other, tiny_whisper_pt, ["^encoder\\."], **later), held)
    assert re.match(f"the frozen llm was {this.name}, .*, sha256 [0-9a-f]+, now it is {other.name}, ", found)


def test_training_is_warned_and_an_adaptor_of_a_stage_left_out_is_missed(
    llms: dict[str, Path], tiny_whisper_pt: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    one = model(llms["this"], tiny_whisper_pt, FROZEN)
    with torch.no_grad():
        for weight in one.adaptor.parameters():
            weight.add_(1)
    torch.save(saved(one), first)
    two = model(llms["this"], tiny_whisper_pt, ["^encoder\\.", "^adaptor\\."], init_from=[str(first)])
    torch.save(saved(two), second)
    fresh = model(llms["this"], tiny_whisper_pt, ["^encoder\\."])
    fresh._trainer = SimpleNamespace(training=True, is_global_zero=True)
    with pytest.warns(UserWarning, match=r"model\.init_from: .*second\.ckpt was .*: the frozen adaptor was float32"):
        load_stages(fresh, [str(second)])
