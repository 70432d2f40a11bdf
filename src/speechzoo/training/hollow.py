"""One process builds a model; the others get its modules without the numbers, which take no memory until sharded."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_warn
from torch import distributed as dist
from torch import nn

T = TypeVar("T")


class _Pickler(pickle.Pickler):
    """Writes shape, type and `requires_grad` in the place of each parameter."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, nn.Parameter):
            self.seen[id(obj)] = obj
            return id(obj), tuple(obj.shape), obj.dtype, obj.requires_grad
        return None

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.seen: dict[int, nn.Parameter] = {}  # keeps them alive: an id is only theirs while they live


class _Unpickler(pickle.Unpickler):
    """Makes parameters on the meta device; what was one parameter (tied tables) is one again."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.made: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: Any) -> nn.Parameter:
        key, shape, dtype, requires_grad = pid
        if key not in self.made:
            self.made[key] = nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad)
        return self.made[key]


def pack(modules: dict[str, nn.Module]) -> bytes:
    """Modules without the numbers of their parameters; buffers, which are small, are included."""
    file = io.BytesIO()
    _Pickler(file).dump(modules)
    return file.getvalue()


def unpack(data: bytes) -> dict[str, nn.Module]:
    """The modules, with parameters on the meta device."""
    modules: dict[str, nn.Module] = _Unpickler(io.BytesIO(data)).load()
    return modules


def build_once(module: nn.Module, prepare: Callable[[], T]) -> T:
    """Run `prepare`, which adds child modules to `module`, in rank 0; give the others the children hollow.

    Pretrained weights are so read by one process of the whole run. All ranks continue with rank 0's state of torch's
    random generator, as if each had run `prepare`. Parts that cannot be pickled are built by every rank, with a
    warning.

    Returns:
        What `prepare` returned in rank 0 (plain data).

    Raises:
        ValueError: in all ranks, if `prepare` fails in rank 0 (there the error itself).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return prepare()
    before = set(module._modules)
    message: list[dict[str, Any]] = [{}]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            message[0]["result"] = prepare()
        except Exception as error:  # whatever it is, the other ranks must not wait for it
            failure, message[0]["error"] = error, f"{error}"
        else:
            message[0]["random"] = torch.get_rng_state()
            children = {
                name: child for name, child in module._modules.items() if child is not None and name not in before
            }
            try:
                message[0]["modules"] = pack(children)
            except Exception as error:  # pickle raises whatever the foreign class does
                rank_zero_warn(
                    f"every rank loads the whole model: it cannot be sent from rank 0 ({str(error)[:200]})",
                    category=UserWarning,
                )
    dist.broadcast_object_list(message)
    told = message[0]
    if failure is not None:
        raise failure
    if "error" in told:
        raise ValueError(told["error"])
    if dist.get_rank() > 0:
        if "modules" in told:
            for name, child in unpack(told["modules"]).items():
                setattr(module, name, child)
        else:
            prepare()
        torch.set_rng_state(told["random"])
    result: T = told["result"]
    return result


def fill(module: nn.Module, device: torch.device) -> None:
    """Give a module's whole (unsharded) parameters rank 0's numbers on `device`, tied ones staying tied; a collective
    call."""
    from torch.distributed.tensor import DTensor

    done: dict[nn.Parameter, nn.Parameter] = {}
    send = dist.is_initialized() and dist.get_world_size() > 1
    for child in module.modules():
        for name, parameter in child._parameters.items():
            if parameter is None or isinstance(parameter, DTensor):
                continue
            if parameter not in done:
                data = torch.empty_like(parameter, device=device) if parameter.is_meta else parameter.data.to(device)
                data = data.contiguous()
                if send:
                    # As bytes: not every backend knows every type.
                    dist.broadcast(data.view(-1).view(torch.uint8) if data.numel() else data, 0)
                done[parameter] = nn.Parameter(data, parameter.requires_grad)
            child._parameters[name] = done[parameter]
