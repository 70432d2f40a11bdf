"""A checkpoint as a folder: every process writes its shards, any number of processes reads them (torch's DCP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.checkpoint import FileSystemWriter
from torch.distributed.checkpoint import load as dcp_load
from torch.distributed.checkpoint import save as dcp_save
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from speechzoo.system.digests import DamagedError, check_files, file_digest
from speechzoo.system.files import check_room, discard, telling_room
from speechzoo.training.checkpoint_file import num_bytes, part_of, put, read_file, save_synced, telling_damage
from speechzoo.training.shard_reader import ShardReader

PLAIN = "meta.pt"


def is_sharded_folder(path: str | Path) -> bool:
    """Whether a path is such a folder (Lightning's own test: a folder with meta.pt)."""
    return (Path(path) / PLAIN).is_file()


def save_sharded(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors are shards; a collective call.

    It is written beside its target and renamed when all processes are done, so a kill leaves the previous one.

    Raises:
        DiskFullError, OSError: if it cannot be written, on all processes.
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
    part, need = part_of(path), num_bytes([tensors, plain_states])

    def begin() -> None:
        discard(part)
        part.parent.mkdir(parents=True, exist_ok=True)
        check_room(part.parent, need, str(path))
        part.mkdir()

    def finish() -> None:
        known = {name: digest for some in digests for name, digest in some.items()}
        rest["digests"] = known | {
            file.name: file_digest(file) for file in sorted(part.iterdir()) if file.name not in known
        }
        rest["optimizer_states"] = plain_states
        save_synced(rest, part / PLAIN)
        put(part, path)

    with telling_room(path, need):
        try:
            _first(begin)
            try:
                dcp_save(tensors, storage_writer=FileSystemWriter(part, sync_files=True))
            except CheckpointException as error:  # no Exception, and tracebacks for a text
                raise OSError(f"{path}: cannot be written ({str(error).strip().splitlines()[-1]})") from error
            own = {file.name: file_digest(file) for file in part.glob(f"__{dist.get_rank()}_*")}
            digests = _gathered(own)
            _first(finish)
        except BaseException:
            if dist.get_rank() == 0:
                discard(part)
            raise


def _first(act: Callable[[], None]) -> None:
    """Rank 0 acts, the others wait; where it fails all of them raise."""
    told: list[str | None] = [None]
    failed = None
    if dist.get_rank() == 0:
        try:
            act()
        except Exception as error:
            failed, told = error, [str(error)]
    dist.broadcast_object_list(told, src=0)
    if failed is not None:
        raise failed
    if told[0] is not None:
        raise OSError(told[0])


def _gathered(value: Any) -> list[Any]:
    """The value of each process, on all of them."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def read_plain(path: Path) -> dict[str, Any]:
    """All but the tensors.

    Raises:
        DamagedError: if the file that holds it is damaged.
    """
    return read_file(path / PLAIN)


def check_shards(path: Path, digests: Mapping[str, str]) -> None:
    """Compare the files of a folder with their digests, which those of older versions do not have.

    Raises:
        DamagedError: naming the first one that differs or is missing.
    """
    check_files(path, digests, PLAIN)


def load_sharded(path: Path, saved: dict[str, Any], weights: dict[str, Tensor], optimizers: list[Optimizer]) -> None:
    """Read weights into `weights` and the state of optimizers into them, cut as the parameters are now.

    A collective call: each process checks its share of the files.

    Args:
        saved: from `read_plain`.

    Raises:
        DamagedError: if a file is damaged or missing, on all processes.
    """
    files = sorted(saved.pop("digests", {}).items())
    told = ""
    try:
        check_shards(path, dict(files[dist.get_rank() :: dist.get_world_size()]))
    except DamagedError as error:
        told = str(error)
    if found := [text for text in _gathered(told) if text]:
        raise DamagedError(found[0])
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
    """The checkpoint as one file would hold it, assembled on the CPU by this process alone.

    Raises:
        DamagedError: if a file is damaged or missing.
    """
    saved = read_plain(path)
    check_shards(path, saved.pop("digests", {}))
    with telling_damage(path):
        tensors = _read_tensors(path)
    for name in [name for name in tensors if name.startswith("optimizer_")]:
        number, index, key = name.removeprefix("optimizer_").split(".", 2)
        saved["optimizer_states"][int(number)]["state"][int(index)][key] = tensors.pop(name)
    return {**saved, "state_dict": tensors}


def _read_tensors(path: Path) -> dict[str, Any]:
    tensors: dict[str, Any] = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in ShardReader(path).read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    dcp_load(tensors, storage_reader=ShardReader(path), no_dist=True)
    return tensors
