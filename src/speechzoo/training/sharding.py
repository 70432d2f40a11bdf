"""One way of sharding for every model: a unit per repeated block, one for the rest of each part (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from speechzoo.training.hollow import fill

OUTSIDE = ("generate", "generate_states", "embed", "decode")
"""Methods beside `forward` that models call on their parts: there too the weights have to be gathered."""


def blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers of a part: the elements of its outermost `nn.ModuleList`s, where they have parameters.

    Each has to be run by calling it, as FSDP gathers its weights when it is called.
    """
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def shard(model: nn.Module, mesh: DeviceMesh, device: torch.device, reshard_after_forward: bool = True) -> None:
    """Shard every part (child) of a model over the processes, block by block; a collective call.

    Each unit gets rank 0's numbers just before it is cut, so that beside its shards a process holds one unit at most.
    Tied tables stay tied, as embedding and head belong to the same unit.

    Args:
        mesh: one dimension, or (replicate, shard).
        device: where the shards live.
        reshard_after_forward: let a unit's weights go between forward and backward: less memory, one more gather.

    Raises:
        ValueError: if a trainable parameter is left whole: its ranks would drift apart in silence. Or if what learns
            in a unit has several dtypes, which FSDP2 cannot reduce together.
    """
    own = [name for name, parameter in model.named_parameters(recurse=False) if parameter.requires_grad]
    for name, part in model.named_children():
        if not any(True for _ in part.parameters()):
            continue
        _refuse_ties(name, [*blocks(part)], part)
        for unit in [*blocks(part), part]:
            _refuse_dtypes(name, unit)
            fill(unit, device)
            fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward)
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            own.append(name)  # never called itself
        _gather_in(part, [method for method in OUTSIDE if hasattr(part, method)])
    own += [name for name, parameter in model.named_parameters() if not _is_safe(parameter)]
    if own:
        raise ValueError(
            f"{type(model).__name__}: {sorted(set(own))[:3]} cannot be sharded: trainable parameters belong into parts "
            "that are modules with a forward of their own"
        )


def _refuse_ties(name: str, layers: list[nn.Module], part: nn.Module) -> None:
    """A weight that two units share would become two weights."""
    owner: dict[int, int] = {}
    for index, layer in enumerate(layers):
        for key, parameter in layer.named_parameters():
            if owner.setdefault(id(parameter), index) != index:
                raise ValueError(f"{name}: two layers share {key}, which cannot be sharded")
    inside = {id(module) for layer in layers for module in layer.modules()}
    for key, module in part.named_modules():
        if id(module) not in inside and any(id(p) in owner for p in module._parameters.values()):
            raise ValueError(f"{name}: {key} shares a weight with a layer, which cannot be sharded")


def _refuse_dtypes(name: str, unit: nn.Module) -> None:
    """torch would say so too, in the first step and without names. What is sharded already belongs to inner units."""
    learning: dict[torch.dtype, str] = {}
    for key, parameter in unit.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            learning.setdefault(parameter.dtype, key)
    if len(learning) > 1:
        told = " and ".join(f"{key} in {str(kind).removeprefix('torch.')}" for kind, key in learning.items())
        raise ValueError(
            f"{name}: {told} cannot learn together under fsdp2: load what learns in float32 (the part's dtype; with "
            "precision: bf16-mixed the arithmetic is bfloat16 all the same), or freeze the rest"
        )


def _is_safe(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or not parameter.requires_grad


def _gather_in(part: FSDPModule, methods: list[str]) -> None:
    """Make FSDP treat methods like `forward`, unless they are called from inside `forward` or one of themselves."""
    depth = 0

    def enter(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def guarded(plain: Callable[..., Any], gathered: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)
        def method(*args: Any, **kwargs: Any) -> Any:
            if depth:
                return plain(*args, **kwargs)
            enter()
            try:
                return gathered(*args, **kwargs)
            finally:
                leave()

        return method

    part.register_forward_pre_hook(enter)
    part.register_forward_hook(leave, always_call=True)
    for name in methods:
        plain = getattr(part, name)
        register_fsdp_forward_method(part, name)
        setattr(part, name, guarded(plain, getattr(part, name)))


def whole(tensor: Any) -> Any:
    """A tensor with all its shards, gathered; other values unchanged. A collective call for what is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(full: Tensor, like: DTensor) -> Tensor:
    """This process's piece of a whole tensor that is cut as `like` is (a view)."""
    for dim, placement in enumerate(like.placements):
        if placement.is_shard():
            pieces = full.chunk(like.device_mesh.size(dim), placement.dim)
            index = like.device_mesh.get_local_rank(dim)
            full = pieces[index] if index < len(pieces) else full.narrow(placement.dim, 0, 0)
    return full


def cut(full: Tensor, like: DTensor) -> DTensor:
    """A whole tensor as shards of a tensor cut as `like` is, on its device."""
    local = local_part(full, like).to(like.device, copy=True).contiguous()
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
