"""What cached states are known by: settings, and every byte of the frozen parts that they come from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from speechzoo.llms import LLM


def refuse_learning(parts: Mapping[str, nn.Module], option: str) -> None:
    """States of parts that learn change from step to step: they cannot be kept.

    Args:
        parts: by their names in the model.
        option: the setting that wants the states kept.

    Raises:
        ValueError: naming the first weight that learns.
    """
    for kind, part in parts.items():
        learns = [name for name, weight in part.named_parameters() if weight.requires_grad]
        if learns:
            raise ValueError(
                f"{option} needs a frozen {kind}, but {kind}.{learns[0]} learns: add it to model.freeze, "
                f"or leave {option} out"
            )


def fingerprint(settings: tuple[Any, ...], parts: Mapping[str, nn.Module], llm: LLM) -> str:
    """A hash (64 hex digits) of settings, among them the LLM's, and of all weights of these parts.

    Weights that are cut over processes are gathered one by one: call it in all of them.
    """
    digest = hashlib.sha256(repr(settings).encode())
    digest.update(llm.settings.encode())
    for part in parts.values():
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    """The raw bytes of a tensor, gathered first where it is sharded."""
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
