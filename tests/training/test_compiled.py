"""Compiled layers: the same numbers, one graph for every length, the same names, plain where a cache is used."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import SMALL_DECODER, SMALL_WRITER, make, parts, tone, user
from test_models import assistant as answer
from torch._dynamo.utils import counters

from speechzoo.data import encode_batch
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni, LLaMAOmni2
from speechzoo.training.compiled import compile_layers

LENGTHS = [(1, 0.5, 4), (2, 0.9, 7), (3, 1.7, 12), (2, 2.3, 20)]  # rows, seconds, words


def conversations(rows: int, seconds: float, words: int) -> list[Any]:
    texts = [" ".join(["six"] * (words + row)) for row in range(rows)]
    return [[user(tone(seconds, 200 + 50 * row)), answer(text, [1, 2, 3])] for row, text in enumerate(texts)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cls", "recompute", "backend", "lengths"),
    [
        (LLaMAOmni, True, "eager", LENGTHS),
        (LLaMAOmni, True, "aot_eager", LENGTHS[1:2]),
        (LLaMAOmni2, True, "eager", LENGTHS),
    ],
)
def test_losses_and_gradients_are_the_same_with_few_graphs(
    tiny_llm_dir: Path,
    tiny_whisper_pt: Path,
    cls: type[LLaMAOmni],
    recompute: bool,
    backend: str,
    lengths: list[tuple[int, float, int]],
) -> None:
    torch._dynamo.reset()
    counters.clear()
    llm = partial(HFCausalLM, model=str(tiny_llm_dir), gradient_checkpointing=recompute)
    encoder = partial(WhisperEncoder, model=str(tiny_whisper_pt), window="padded")

    def made() -> LLaMAOmni:
        torch.manual_seed(0)
        decoder = SMALL_WRITER if cls is LLaMAOmni2 else SMALL_DECODER
        options = {"freeze": ["^encoder\\."], "llm": llm, "encoder": encoder, "unit_decoder": decoder}
        model = cls(**parts(tiny_llm_dir, tiny_whisper_pt, **options))
        model.configure_model()
        return model.train()

    plain, fast = made(), made()
    names = set(fast.state_dict())
    layers = compile_layers(fast, ["encoder", "llm", "unit_decoder"], backend)
    assert layers >= 4 and set(fast.state_dict()) == names
    graphs = []
    for length in lengths:
        batch = encode_batch(plain.prompt, conversations(*length), True, "right")
        for model in (plain, fast):
            model.zero_grad()
            sum(model(batch).losses.values()).backward()
        for (name, ours), theirs in zip(fast.named_parameters(), plain.parameters(), strict=True):
            if theirs.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6, msg=name)
        graphs.append(counters["stats"]["unique_graphs"])
    assert 3 <= graphs[0] <= layers and graphs[-1] == graphs[:2][-1] and not counters["graph_break"]
    assert copy.deepcopy(fast).llm.state_dict().keys() == plain.llm.state_dict().keys()


@pytest.mark.parametrize("name", ["llama_omni", "llama_omni2"])
def test_answers_run_as_they_are(tiny_llm_dir: Path, tiny_whisper_pt: Path, name: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = make(name, tiny_llm_dir, tiny_whisper_pt).eval()
    batch = encode_batch(model.prompt, conversations(2, 0.9, 5), False, "left")
    expected = model.respond(batch, max_new_tokens=6)
    compile_layers(model, ["llm", "unit_decoder"], backend="aot_eager")
    found = model.respond(batch, max_new_tokens=6)
    assert found.text == expected.text and all(map(torch.equal, found.units, expected.units))
    assert not counters["stats"]["unique_graphs"]


def test_a_part_without_layers_is_refused(tiny_llm_dir: Path, tiny_whisper_pt: Path) -> None:
    model = make("llasm", tiny_llm_dir, tiny_whisper_pt)
    with pytest.raises(ValueError, match=r"model.compile: 'adaptor' is no part .*there are: encoder, llm"):
        compile_layers(model, ["adaptor"])
