"""One way of sharding for every model: a unit per repeated block, one for the rest of each part (FSDP2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Shard
from torch.nn.modules.batchnorm import _BatchNorm

from speechzoo.system.ranks import any_rank
from speechzoo.training.hollow import fill

OUTSIDE = ("generate", "generate_states", "embed", "unembed", "decode")
"""Methods beside `forward` that models call on their parts: there too the weights have to be gathered."""

ANSWERS = ("generate", "generate_states")
"""Those that run the part once a token: its weights stay gathered from the first token to the last."""


def blocks(part: nn.Module) -> Iterator[nn.Module]:
    """The repeated layers of a part: the elements of its outermost `nn.ModuleList`s, where they have parameters.

    Each has to be run by calling it, as FSDP gathers its weights when it is called.
    """
    for child in part.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child if any(True for _ in block.parameters()))
        else:
            yield from blocks(child)


def shard(
    model: nn.Module,
    mesh: DeviceMesh,
    device: torch.device,
    reshard_after_forward: bool = True,
    half: torch.dtype | None = None,
) -> None:
    """Shard every part (child) of a model over the processes, block by block; a collective call.

    Each unit gets rank 0's numbers just before it is cut, so that beside its shards a process holds one unit at most.
    Tied tables stay tied, as embedding and head belong to the same unit.

    Args:
        mesh: one dimension, or (replicate, shard).
        device: where the shards live.
        reshard_after_forward: let a unit's weights go between forward and backward: less memory, one more gather.
        half: what autocast computes in: units that learn are gathered in it. Their shards keep their dtype (float32),
            and their gradients are summed over the processes in float32. Inputs and buffers are left as they are, so
            that what autocast leaves in float32 (the residual stream, norms, rotary embedding, losses) stays so.

    Raises:
        ValueError: if a trainable parameter is left whole: its ranks would drift apart in silence. Or if what learns
            in a unit has several dtypes, which FSDP2 cannot reduce together.
    """
    own = [name for name, parameter in model.named_parameters(recurse=False) if parameter.requires_grad]
    mixed = MixedPrecisionPolicy(half, torch.float32, cast_forward_inputs=False) if half else MixedPrecisionPolicy()
    for name, part in model.named_children():
        if not any(True for _ in part.parameters()):
            continue
        _refuse_ties(name, [*blocks(part)], part)
        learns = any(parameter.requires_grad for parameter in part.parameters())
        for unit in [*blocks(part), part]:
            policy = mixed if half and _learning(unit) and _takes_half(unit, device) else MixedPrecisionPolicy()
            _refuse_dtypes(name, unit)
            fill(unit, device)
            if policy.param_dtype:
                restore_embedded(unit)
            fully_shard(unit, mesh=mesh, reshard_after_forward=reshard_after_forward, mp_policy=policy)
        if isinstance(part, nn.ModuleList | nn.ModuleDict):
            own.append(name)  # never called itself
        methods = [method for method in OUTSIDE if hasattr(part, method)]
        _gather_in(part, methods, reshard_after_forward, half if learns else None, device)
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


def _learning(unit: nn.Module) -> dict[torch.dtype, str]:
    """What learns in a unit: a name for each dtype. What is sharded already belongs to inner units."""
    learning: dict[torch.dtype, str] = {}
    for key, parameter in unit.named_parameters():
        if parameter.requires_grad and not isinstance(parameter, DTensor):
            learning.setdefault(parameter.dtype, key)
    return learning


def _refuse_dtypes(name: str, unit: nn.Module) -> None:
    """torch would say so too, in the first step and without names."""
    learning = _learning(unit)
    if len(learning) > 1:
        told = " and ".join(f"{key} in {str(kind).removeprefix('torch.')}" for kind, key in learning.items())
        raise ValueError(
            f"{name}: {told} cannot learn together under fsdp2: load what learns in float32 (the part's dtype; with "
            "precision: bf16-mixed the arithmetic is bfloat16 all the same), or freeze the rest"
        )


def _own(unit: nn.Module) -> Iterator[nn.Module]:
    """Modules of a unit that have parameters which no inner unit has taken."""
    for module in unit.modules():
        if any(not isinstance(parameter, DTensor) for parameter in module.parameters(recurse=False)):
            yield module


def _takes_half(unit: nn.Module, device: torch.device) -> bool:
    """Whether its norms take float32 with weights in half precision: torch's own do not, but where autocast (on GPUs)
    casts their weights back."""
    stubborn: tuple[type, ...] = (_BatchNorm,)
    if device.type == "cpu":
        stubborn += (nn.LayerNorm, nn.GroupNorm)
    return not any(isinstance(module, stubborn) for module in _own(unit))


def restore_embedded(unit: nn.Module) -> None:
    """Give embeddings of a table that is gathered in half precision the table's own dtype.

    Autocast leaves it alone, and the residual stream and the angles of rotary embeddings take it over from there.
    """
    for module in _own(unit):
        if isinstance(module, nn.Embedding):
            module.register_forward_hook(lambda _, __, out, dtype=module.weight.dtype: out.to(dtype))


def _is_safe(parameter: nn.Parameter) -> bool:
    return isinstance(parameter, DTensor) or not parameter.requires_grad


def _gather_in(
    part: nn.Module, methods: list[str], reshard: bool, half: torch.dtype | None, device: torch.device
) -> None:
    """Make FSDP treat methods like `forward`, unless they are called from inside `forward` or one of themselves.

    Weights gathered in `half` cannot be multiplied with float32: whoever calls without autocast gets it here.
    """
    depth = 0
    cast = torch.autocast(device.type, half or torch.bfloat16)
    casting = False

    def enter(*_: Any) -> None:
        nonlocal depth, casting
        depth += 1
        if depth == 1 and half is not None and not torch.is_autocast_enabled(device.type):
            cast.__enter__()
            casting = True

    def leave(*_: Any) -> None:
        nonlocal depth, casting
        depth -= 1
        if not depth and casting:
            cast.__exit__(None, None, None)
            casting = False

    def guarded(plain: Callable[..., Any], gathered: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)
        def method(*args: Any, **kwargs: Any) -> Any:
            if depth:
                return plain(*args, **kwargs)
            enter()
            try:
                return gathered(*args, **kwargs)
            except BaseException:
                if reset := getattr(part, "reset_iter_state", None):  # of newer versions: a forward that ended half-way
                    reset()
                raise
            finally:
                leave()

        return method

    def holding(plain: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(plain)
        def method(*args: Any, **kwargs: Any) -> Any:
            with held_whole(part, reshard, half, device):
                return plain(*args, **kwargs)

        return method

    part.register_forward_pre_hook(enter)
    part.register_forward_hook(leave, always_call=True)
    for name in methods:
        plain = getattr(part, name)
        if name in ANSWERS:
            setattr(part, name, holding(plain))
        register_fsdp_forward_method(part, name)
        setattr(part, name, guarded(plain, getattr(part, name)))


@contextmanager
def held_whole(part: nn.Module, reshard: bool, half: torch.dtype | None, device: torch.device) -> Iterator[None]:
    """Gather all weights of a part once and keep them, then let them go; a collective call at its beginning alone.

    Inside, the processes need not keep in step. Where a process has no room for the whole part all of them do without,
    and each call of a layer gathers its weights.
    """
    if any_rank(not _has_room(part, half, device), device):
        yield
        return
    units = [module for module in part.modules() if isinstance(module, FSDPModule)]
    try:
        for unit in units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(reshard, recurse=False)
            unit.reshard()


def _has_room(part: nn.Module, half: torch.dtype | None, device: torch.device) -> bool:
    """Whether a GPU can hold all weights of a part beside what it holds, with some memory to work in."""
    if device.type != "cuda":
        return True
    widths = [(p.numel(), half.itemsize if half and p.requires_grad else p.element_size()) for p in part.parameters()]
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return sum(n * width for n, width in widths) < 0.9 * (torch.cuda.mem_get_info(device)[0] + unused)


def whole(tensor: Any) -> Any:
    """A tensor with all its shards, gathered; other values unchanged. A collective call for what is sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_part(full: Tensor, like: DTensor) -> Tensor:
    """This process's piece of a whole tensor that is cut as `like` is (a view)."""
    for dim, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
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
