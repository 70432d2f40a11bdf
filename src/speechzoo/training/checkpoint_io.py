"""Checkpoints written straight to disk, whole or not at all: Lightning's plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH

from speechzoo.system.digests import check_zip
from speechzoo.system.files import check_room, discard, telling_room
from speechzoo.training.checkpoint_file import num_bytes, part_of, put, recover, save_synced, telling_damage
from speechzoo.training.published import WEIGHTS, read_published
from speechzoo.training.sharded_folder import is_sharded_folder, read_whole


class FileCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint to a temporary file beside its target, syncs it and renames it.

    Lightning's own plugin builds the whole file in memory first, which for a fully fine-tuned model with its optimizer
    state is the largest allocation of the run. A process killed while writing leaves the previous checkpoint whole.
    Paths with a scheme (`s3://...`) go to Lightning's plugin. Checkpoints that `fsdp2` wrote as folders are read too.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`.

        Raises:
            DiskFullError: if there is too little room: before anything is written where that can be known.
        """
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part, need = part_of(target), num_bytes(checkpoint)
        discard(part)  # of a writer that was killed
        check_room(target.parent, need, str(target))
        with telling_room(target, need):
            try:
                save_synced(checkpoint, part)
                put(part, target)
            except BaseException:
                discard(part)
                raise

    def load_checkpoint(self, path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, a file or a folder.

        Raises:
            DamagedError: if it is not what was written.
        """
        if "://" in str(path):
            return super().load_checkpoint(path, *args, **kwargs)
        recover(Path(path))
        if is_sharded_folder(path):
            return read_whole(Path(path))
        if Path(path).name == WEIGHTS:
            return read_published(Path(path).parent)
        if Path(path).is_file():
            check_zip(path)
        with telling_damage(path):
            return super().load_checkpoint(path, *args, **kwargs)
