"""Checkpoints written straight to disk, whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class FileCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint to a temporary file beside its target, syncs it and renames it.

    Lightning's own plugin builds the whole file in memory first, which for a fully fine-tuned model with its optimizer
    state is the largest allocation of the run. A process killed while writing leaves the previous checkpoint whole.
    Paths with a scheme (`s3://...`) go to Lightning's plugin. Checkpoints that `fsdp2` wrote as folders are read too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = part_of(target)
        discard(part)
        save_synced(checkpoint, part)
        put(part, target)

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, a file or a folder."""
        from speechzoo.training.sharded_folder import is_sharded_folder, read_whole

        if "://" not in str(path):
            recover(Path(path))
            if is_sharded_folder(path):
                return read_whole(Path(path))
        return super().load_checkpoint(path, *args, **kwargs)


def save_synced(data: dict[str, Any], path: Path) -> None:
    """`torch.save` that returns only when the file is on disk."""
    with path.open("wb") as file:
        torch.save(data, file)
        file.flush()
        os.fsync(file.fileno())


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
        os.replace(part, target)


def recover(target: Path) -> None:
    """Bring back a checkpoint whose replacement was cut off at the last moment (see `put`)."""
    old = _aside(target)
    if old.exists() and not target.exists():
        with contextlib.suppress(FileNotFoundError):  # another process did so meanwhile
            old.rename(target)


def discard(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _aside(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")
