"""A checkpoint as a folder: every process writes its shards, any number of processes reads them (torch's DCP)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from speechzoo.training.checkpoint_io import discard, part_of, put, save_synced
from speechzoo.training.shard_reader import ShardReader

PLAIN = "meta.pt"


def is_sharded_folder(path: str | Path) -> bool:
    """Whether a path is such a folder (Lightning's own test: a folder with meta.pt)."""
    return (Path(path) / PLAIN).is_file()


def save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors are shards; a collective call.

    It is written beside its target and renamed when all processes are done, so a kill leaves the previous one.
    """
    rest = dict(checkpoint)
    tensors = dict(rest.pop("state_dict"))
    plain_states = []
    for number, optimizer in enumerate(rest.pop("optimizer_states", [])):
        state: dict[Any, Any] = {}
        for index, values in optimizer["state"].items():
            state[index] = {}
            for key, value in values.items():
                if isinstance(value, DTensor):
                    tensors[f"optimizer_{number}.{index}.{key}"] = value
                else:
                    state[index][key] = value
        plain_states.append({**optimizer, "state": state})
    part = part_of(path)
    rank = dist.get_rank()
    if rank == 0:
        discard(part)
        part.mkdir(parents=True)
    dist.barrier()
    dcp_save(tensors, storage_writer=FileSystemWriter(part, sync_files=True))
    if rank == 0:
        rest["optimizer_states"] = plain_states
        save_synced(rest, part / PLAIN)
        put(part, path)
    dist.barrier()


def read_plain(path: Path) -> dict[str, Any]:
    """All but the tensors."""
    return torch.load(path / PLAIN, "cpu", weights_only=True)


def load_sharded(path: Path, saved: dict[str, Any], weights: dict[str, Tensor], optimizers: list[Optimizer]) -> None:
    """Read weights into `weights` and the state of optimizers into them, cut as the parameters are now.

    Args:
        saved: from `read_plain`.
    """
    tensors: dict[str, Any] = {name: weight.data for name, weight in weights.items()}
    names = ShardReader(path).read_metadata().state_dict_metadata
    states = []
    for number, optimizer in enumerate(optimizers):
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        saved_state = saved["optimizer_states"][number]
        state = {index: dict(values) for index, values in saved_state["state"].items()}
        for name in names:
            if name.startswith(f"optimizer_{number}."):
                _, index, key = name.split(".", 2)
                tensors[name] = state[int(index)][key] = torch.zeros_like(parameters[int(index)].data)
        states.append({**saved_state, "state": state})
    dcp_load(tensors, storage_reader=ShardReader(path))
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def read_whole(path: Path) -> dict[str, Any]:
    """The checkpoint as one file would hold it, assembled on the CPU by this process alone."""
    saved = read_plain(path)
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in ShardReader(path).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp_load(tensors, storage_reader=ShardReader(path), no_dist=True)
    for name in [name for name in tensors if name.startswith("optimizer_")]:
        number, index, key = name.removeprefix("optimizer_").split(".", 2)
        saved["optimizer_states"][int(number)]["state"][int(index)][key] = tensors.pop(name)
    return {**saved, "state_dict": tensors}
