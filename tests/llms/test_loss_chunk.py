"""The loss in pieces is the loss, whatever the vocabulary head is, and never holds the logits of all positions."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_models import CONVERSATIONS, parts
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from speechzoo.data import encode_batch
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaSM
from speechzoo.types import SpeechBatch

HEADS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "tied tables": {},
    "lora": {"lora": {"r": 2}},
    "lora on the head": {"lora": {"r": 2, "target_modules": ["q_proj", "lm_head"], "lora_dropout": 0.0}},
    "head saved whole": {"lora": {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}},
}


def run(model: Any, batch: SpeechBatch, autocast: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(batch).losses["lm"]
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("head", HEADS)
def test_loss_and_gradients_are_those_of_one_piece(
    tiny_llm_dir: Path, tiny_whisper_pt: Path, head: str, autocast: bool
) -> None:
    def made(chunk: int | None) -> Any:
        llm = partial(HFCausalLM, model=str(tiny_llm_dir), loss_chunk=chunk, **HEADS[head])
        torch.manual_seed(0)
        model = LLaSM(**parts(tiny_llm_dir, tiny_whisper_pt, freeze=["^encoder\\."], llm=llm))
        model.configure_model()
        model.train()
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # zeros would hide what LoRA does
                weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
        return model

    whole, pieces = made(None), made(3)
    batch = encode_batch(whole.prompt, CONVERSATIONS, True, "right")
    assert whole.num_targets(batch)["lm"] % 3  # the last piece is smaller
    loss, gradients = run(whole, batch, autocast)
    again, others = run(pieces, batch, autocast)
    torch.testing.assert_close(again, loss, rtol=1e-6, atol=0)
    assert set(gradients) == set(others) and any("lm_head" in name or "embed" in name for name in gradients) == (
        head != "lora"
    )
    for name, gradient in gradients.items():
        tolerance = 1e-2 if autocast else 1e-5  # of the largest; sums in another order
        scale = float(gradient.abs().max())
        torch.testing.assert_close(others[name], gradient, rtol=0, atol=tolerance * scale, msg=name)


class Largest(TorchDispatchMode):
    """Most rows of logits, or of their gradients, that an operation made; the head's own weights do not count."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width, self.rows = vocabulary, width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            logits = isinstance(leaf, Tensor) and leaf.dim() == 2 and leaf.shape[1] == self.vocabulary
            if logits and leaf.shape[0] != self.width:
                self.rows = max(self.rows, leaf.shape[0])
        return out


def test_memory_does_not_grow_with_the_targets(tiny_llm_dir: Path) -> None:
    vocabulary = 4000
    saved = {}
    for chunk in (None, 8):
        torch.manual_seed(0)
        llm = HFCausalLM([vocabulary - 1], str(tiny_llm_dir), loss_chunk=chunk).requires_grad_(False)
        ids = torch.randint(3, 100, (4, 41))
        speech = torch.zeros(0, 1, llm.dim)
        kept = 0

        def keep(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel() * (tensor.shape[-1:] == (vocabulary,))
            return tensor

        llm.new_embeddings.requires_grad_(True)
        with Largest(vocabulary, llm.dim) as largest, saved_tensors_hooks(keep, lambda tensor: tensor):
            out = llm(ids, torch.ones_like(ids).bool(), torch.ones_like(ids), speech, torch.zeros(0).long())
            out.loss_sum.backward()
        saved[chunk] = kept, largest.rows
    assert saved[None] == (saved[None][0], 4 * 40) and saved[None][0] >= 4 * 40 * vocabulary
    assert saved[8] == (0, 8)
