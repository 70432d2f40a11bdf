"""What parts have to know of other processes: whether they are cut over them, and what all agree on."""

from __future__ import annotations

import atexit
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import distributed as dist
from torch import nn


def is_sharded(part: nn.Module) -> bool:
    """Whether a part's weights are cut over processes, so that all of them have to call it together."""
    if not dist.is_available() or not dist.is_initialized():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(part, FSDPModule)


def in_pieces(part: nn.Module) -> bool:
    """Whether some of a part's weights are shards at this moment: to run it, all processes have to run it now."""
    if not is_sharded(part):
        return False
    from torch.distributed.tensor import DTensor

    return any(isinstance(parameter, DTensor) for parameter in part.parameters())


def rank() -> int:
    """This process's number, 0 where nothing is distributed; known before the process group is there too."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(getattr(rank_zero_only, "rank", 0) or 0)


def world_size() -> int:
    """Processes that run together; 1 where nothing is distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether a flag is set in any process; a collective call."""
    if world_size() == 1:
        return flag
    told = torch.tensor(int(flag), device=device)
    dist.all_reduce(told, dist.ReduceOp.MAX)
    return bool(told)


def same_everywhere(text: str) -> bool:
    """Whether all processes hold the same text; a collective call."""
    everyone = [text] * world_size()
    if len(everyone) > 1:
        dist.all_gather_object(everyone, text)
    return len(set(everyone)) == 1


@atexit.register
def leave() -> None:
    """Take the process group down before the process ends: a thread of gloo that is still there aborts it (SIGABRT),
    after all work was done. Lightning does so for NCCL only.

    Groups that a sharded model holds outlive that. Their threads may still have to let go of a tensor, which takes
    Python's lock; whoever asks for it after the interpreter's end aborts the process too. The pause gives it to them.
    """
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
        time.sleep(0.2)


def gather_rows(rows: Sequence[tuple[int, Any]]) -> list[Any]:
    """The rows of all processes, given with the number of their batch: in order of batches, then of processes.

    That is the order of the data where the batches were dealt out in turn. A collective call.
    """
    everyone: list[Any] = [None] * world_size()
    if len(everyone) == 1:
        everyone = [rows]
    else:
        dist.all_gather_object(everyone, list(rows))
    numbered = [(batch, rank, row) for rank, some in enumerate(everyone) for batch, row in some]
    return [row for _, _, row in sorted(numbered, key=lambda entry: entry[:2])]
