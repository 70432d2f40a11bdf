"""LLMs of other kinds: states instead of keys and values, positions that are looked up, attention biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from speechzoo.llms import HFCausalLM

SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 32}
NONE = torch.zeros(0, 1, 32), torch.zeros(0, dtype=torch.long)
IDS = torch.randint(3, 64, (3, 12), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(12) >= torch.tensor([[0], [8], [3]])


def made(folder: Path, kind: str, **settings: Any) -> HFCausalLM:
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES, **settings))
    for weight in lm.parameters():
        weight.data = torch.randn_like(weight) * 0.3 if weight.dim() > 1 else weight.data
    lm.save_pretrained(folder)
    return HFCausalLM([], str(folder)).eval()


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("mamba", {"state_size": 8}), ("lfm2", {**HEADS, "layer_types": ["conv", "full_attention"]})],
)
def test_rows_that_end_apart_leave_the_states_of_the_others_alone(kind: str, settings: Any, tmp_path: Path) -> None:
    llm = made(tmp_path, kind, **settings)
    longest = llm.generate(IDS, MASK, *NONE, max_new_tokens=8, eos_token_id=[])
    stop = [int(longest[0][1]), int(longest[1][4])]
    got = llm.generate(IDS, MASK, *NONE, max_new_tokens=8, eos_token_id=stop)
    assert len({len(row) for row in got}) > 1
    for row, said in enumerate(got):
        ends = [at + 1 for at, token in enumerate(longest[row].tolist()) if token in stop]
        assert said.equal(longest[row][: min([*ends, 8])])


@pytest.mark.parametrize("kind", ["gpt2", "opt", "gptj", "mpt"])
@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static", "slots": 2}])
def test_a_text_that_an_llm_has_no_positions_for_is_told_before_it_is_read(
    kind: str, options: Any, tmp_path: Path
) -> None:
    if kind == "mpt" and options:
        pytest.skip("takes no static cache")
    limits = {"n_positions": 30, "rotary_dim": 8} if kind in ("gpt2", "gptj") else {"max_position_embeddings": 30}
    heads = {"n_head": 2} if kind != "opt" else {"num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 32}
    llm = made(tmp_path, kind, **(limits if kind != "mpt" else {"max_seq_len": 30, "n_heads": 2}), **heads)
    kept = {"eos_token_id": [], **options}
    fits = llm.generate(IDS, MASK, *NONE, max_new_tokens=19, **kept)  # the last token is not read
    assert [len(row) for row in fits] == [19] * 3
    llm.generate(IDS, MASK, *NONE, max_new_tokens=19, **{**kept, "eos_token_id": int(fits[0][2])})
    with pytest.raises(ValueError, match="12 positions .* and 19 of an answer are more than the 30 that this LLM"):
        llm.generate(IDS, MASK, *NONE, max_new_tokens=20, **kept)
    with pytest.raises(ValueError, match="19 of an answer are more"):
        llm.generate_states(IDS, MASK, *NONE, read_last=True, max_new_tokens=19, **kept)
    long = torch.ones(1, 31, dtype=torch.long)
    with pytest.raises(ValueError, match="31 positions .* more than the 30 .*: set prompt.max_length to at most 30"):
        llm(long, long.bool(), long, *NONE)


@pytest.mark.parametrize(("kind", "settings"), [("bloom", {"n_head": 2}), ("falcon", {"alibi": True, **HEADS})])
def test_biases_that_are_made_of_the_mask_take_no_static_cache(kind: str, settings: Any, tmp_path: Path) -> None:
    llm = made(tmp_path, kind, **settings)
    assert llm.generate(IDS, MASK, *NONE, max_new_tokens=3)
    with pytest.raises(ValueError, match="this one has ALiBi: leave these settings out"):
        llm.generate(IDS, MASK, *NONE, max_new_tokens=3, cache_implementation="static")


def test_an_llm_without_a_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="OpenAIGPTLMHeadModel has a cache of its own kind"):
        made(tmp_path, "openai-gpt", n_head=2)


def test_an_llm_that_gives_no_states_is_refused(tmp_path: Path) -> None:
    moe = {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 32, "head_dim": 16}
    with pytest.raises(ValueError, match="a Llama4ForCausalLM has no decoder apart from its head"):
        made(tmp_path, "llama4_text", **HEADS, **moe, pad_token_id=0)


def test_an_llm_with_more_between_states_and_logits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"a ModernBertDecoderForCausalLM makes logits by more than one layer \(.*head"
    ):
        made(tmp_path, "modernbert-decoder", **HEADS, pad_token_id=0)
