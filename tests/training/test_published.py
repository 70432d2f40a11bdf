"""Frozen weights of a published model have one hash on every machine: in bfloat16 or wider, by whatever kernels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from speechzoo.llms import HFCausalLM
from speechzoo.training.published import base_values, check_bases


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory, tiny_llm_dir: Path) -> Path:
    """The tiny LLM as LLMs are stored."""
    folder = tmp_path_factory.mktemp("bf16")
    AutoModelForCausalLM.from_pretrained(tiny_llm_dir).bfloat16().save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_llm_dir).save_pretrained(folder)
    return folder


def held(folder: Path, dtype: str) -> nn.Module:
    """A model that holds it with two tokens more, whose rows are the mean of the others."""
    size = len(AutoTokenizer.from_pretrained(folder))
    model = nn.Module()
    model.llm = HFCausalLM([size, size + 1], str(folder), dtype=dtype)
    return model.requires_grad_(False)


def test_the_precision_they_are_held_in_does_not_count(stored: Path) -> None:
    narrow, wide = held(stored, "bfloat16"), held(stored, "float32")
    assert base_values(narrow) == base_values(wide)
    check_bases(wide, base_values(narrow))
    with torch.no_grad():
        wide.llm.lm.get_input_embeddings().weight[3, 1] *= 1.01
    with pytest.raises(ValueError, match="trained on another llm"):
        check_bases(wide, base_values(narrow))


def test_rows_of_new_tokens_do_not_depend_on_the_order_of_a_sum(stored: Path) -> None:
    """Added up one by one, as no kernel does."""
    rows = AutoModelForCausalLM.from_pretrained(stored, dtype=torch.float32).get_input_embeddings().weight.tolist()
    expected = torch.tensor([sum(column) / len(rows) for column in zip(*rows, strict=True)])
    weight = held(stored, "float32").llm.lm.get_input_embeddings().weight
    assert weight[-1].equal(expected) and weight[-2].equal(expected)
