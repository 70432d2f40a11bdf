"""Finds what waits for the device in a step, on a machine without one: Python calls that read a tensor's numbers."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__array__", "__contains__"}
SIZED_BY_NUMBERS = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "equal"}


class Waits(TorchFunctionMode):
    """Notes in `found` each line that would wait for the device, as far as it looks at tensors that would live there.

    Those are the given ones and all that is computed from one of them; what is computed from others (sizes known to the
    host) may be read.
    """

    def __init__(self, on_device: Iterable[Tensor]) -> None:
        super().__init__()
        self.on_device: Any = WeakIdKeyDictionary()
        self.found: list[str] = []
        self.put(on_device)

    def put(self, tensors: Iterable[Tensor]) -> None:
        """Tensors that would live on the device."""
        for tensor in tensors:
            self.on_device[tensor] = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = any(tensor in self.on_device for tensor in given)
        if (there and self._waits(name, args, kwargs)) or (name == "tensor" and kwargs.get("device") is not None):
            frame = next(f for f in reversed(traceback.extract_stack()[:-1]) if f.filename != __file__)
            self.found.append(f"{frame.filename}:{frame.lineno} {name}: {frame.line}")
        result = func(*args, **kwargs)
        if there:
            changed = args[:1] if name == "__setitem__" or name.endswith("_") else ()
            self.put(leaf for leaf in tree_leaves((result, changed)) if isinstance(leaf, Tensor))
        return result

    @staticmethod
    def _waits(name: str, args: Any, kwargs: Any) -> bool:
        if name in ("__getitem__", "__setitem__", "index_put", "index_put_"):
            return any(isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args[1]))
        if name == "repeat_interleave":
            return "output_size" not in kwargs
        return name in READS | SIZED_BY_NUMBERS or (name == "where" and len(args) == 1)
