"""The repeated layers of parts, compiled by torch: one graph for all layers of a kind and for any length."""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from speechzoo.training.sharding import blocks


class CompiledForward:
    """Stands in for a layer's `forward`: compiled at the first call, and the plain one where a cache is handed on.

    Of `forward` alone, not of the call, so that hooks (FSDP gathers weights in them) stay what they are. Caches of keys
    and values belong to answering, and each of their layers would be compiled by itself. A copy of the layer has a
    copy of this, which compiles for itself; names in checkpoints do not change.

    Args:
        layer: whose `forward` it is.
        backend: of `torch.compile`.
    """

    def __init__(self, layer: nn.Module, backend: str = "inductor") -> None:
        self.layer, self.backend = layer, backend
        self._compiled: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        plain = MethodType(type(self.layer).forward, self.layer)
        if any(hasattr(value, "update") for value in (*args, *kwargs.values())):
            return plain(*args, **kwargs)
        if self._compiled is None:
            self._compiled = torch.compile(plain, backend=self.backend)
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor):  # rows and positions; widths stay numbers that kernels are made for
                torch._dynamo.maybe_mark_dynamic(value, list(range(min(2, value.dim()))))
        return self._compiled(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def compile_layers(model: nn.Module, parts: Iterable[str], backend: str = "inductor") -> int:
    """Have the repeated layers of a model's parts compiled when they first run; returns how many layers.

    Raises:
        ValueError: for a part that the model does not have, or one without repeated layers.
    """
    number = 0
    for name in parts:
        part = getattr(model, name, None)
        layers = list(blocks(part)) if isinstance(part, nn.Module) else []
        if not layers:
            there = ", ".join(n for n, child in model.named_children() if next(blocks(child), None) is not None)
            raise ValueError(f"model.compile: {name!r} is no part with repeated layers (there are: {there})")
        for layer in layers:
            layer.forward = CompiledForward(layer, backend)
        number += len(layers)
    if number:
        # It would cut graphs where DDP's buckets end, which single layers have no use for, and refuse recomputed ones.
        torch._dynamo.config.optimize_ddp = False
        # Kinds of layers share the code that recomputes them, and each is compiled with and without gradients, as the
        # first layer and as a later one.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 32)
    return number
