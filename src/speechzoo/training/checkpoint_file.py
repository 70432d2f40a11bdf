"""The file of a checkpoint: written whole or not at all, read only as it was written."""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.utilities.types import _PATH
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from speechzoo.system.digests import DamagedError, SealedZip, check_zip
from speechzoo.system.files import discard


def save_synced(data: dict[str, Any], path: Path, seal: bool = True) -> None:
    """`torch.save` with a digest, which returns only when the file is on disk.

    Args:
        seal: False leaves the digest out, for files in somebody else's layout.

    Raises:
        OSError: if it cannot be written; torch alone would say that a position is unexpected.
    """
    with path.open("w+b") as file:
        sealed = SealedZip(file)
        try:
            torch.save(data, cast(IO[bytes], sealed))  # torch only writes and flushes
        except Exception as error:
            if sealed.error is not None and sealed.error is not error:
                raise sealed.error from error
            raise
        if seal:
            sealed.seal()
        file.flush()
        os.fsync(file.fileno())


def read_file(path: Path) -> dict[str, Any]:
    """What `save_synced` wrote: plain data and tensors, which stay in the file until they are used.

    The whole file is read once before, in pieces, to compare it with its digest.

    Raises:
        DamagedError: if it is not what was written.
    """
    check_zip(path)
    return map_file(path)


def map_file(path: Path) -> dict[str, Any]:
    """`read_file` of a file that has been checked."""
    with telling_damage(path):
        held: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return held


@contextlib.contextmanager
def telling_damage(path: _PATH) -> Iterator[None]:
    """One line that names the file, for all that torch raises where it cannot read one."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path}: refused or damaged: it holds more than tensors and plain data") from error
    except FileNotFoundError:
        raise
    except (Exception, CheckpointException) as error:  # of many kinds, the last of which is no Exception
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise DamagedError(f"{path}: damaged, or no checkpoint ({told[0][:160]})") from error


def num_bytes(data: Any) -> int:
    """Bytes of all tensors in nested data, what they share counted once; of shards those of the whole."""
    sizes: dict[Any, int] = {}

    def look(value: Any) -> None:
        if isinstance(value, DTensor):
            sizes[id(value)] = value.numel() * value.element_size()
        elif isinstance(value, torch.Tensor):
            storage = value.untyped_storage()
            sizes[storage.data_ptr() or id(value)] = storage.nbytes()
        elif isinstance(value, Mapping):
            for item in value.values():
                look(item)
        elif isinstance(value, (list, tuple)):
            for item in value:
                look(item)

    look(data)
    return sum(sizes.values())


def part_of(target: Path) -> Path:
    """Where a checkpoint is while it is being written."""
    return target.with_name(f".{target.name}.part")


def put(part: Path, target: Path) -> None:
    """Give what is complete its name; what had that name before is let go only then.

    A file replaces a file in one step. A folder cannot: the old one is moved aside first, and `recover` brings it back
    if the process dies between the two.
    """
    old = _aside(target)
    if part.is_dir() or target.is_dir():
        discard(old)
        if target.exists():
            target.rename(old)
        part.rename(target)
        discard(old)
    else:
        part.replace(target)


def recover(target: Path) -> None:
    """Bring back a checkpoint whose replacement was cut off at the last moment (see `put`)."""
    old = _aside(target)
    if old.exists() and not target.exists():
        with contextlib.suppress(FileNotFoundError):  # another process did so meanwhile
            old.rename(target)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
