"""Checkpoints written straight to disk, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH


class FileCheckpointIO(TorchCheckpointIO):
    """Writes a local checkpoint to a temporary file beside its target, syncs it and renames it.

    Lightning's own plugin builds the whole file in memory first, which for a fully fine-tuned model with its optimizer
    state is the largest allocation of the run. A process killed while writing leaves the previous checkpoint whole.
    Paths with a scheme (`s3://...`) go to Lightning's plugin.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with part.open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
