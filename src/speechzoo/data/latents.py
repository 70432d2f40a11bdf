"""Data of the quickstart's vocoder: units, their durations, and the latents a voice's generator was given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler

from speechzoo.models.latent_training import LatentBatch
from speechzoo.system.digests import read_tensors
from speechzoo.system.files import read_lines

POOL = 8  # batches that are sorted by length together


class LatentDataModule(LightningDataModule):
    """Manifests of `{"id", "units": [...], "durations": [...], "latents": "file"}`, all of it kept in memory.

    Units are de-duplicated, durations are frames of the latents, and a latents file (safetensors, `latents`
    `[frames, C]`) is relative to its manifest. Batches hold utterances of similar length; their order depends on the
    seed and the epoch alone. For trainings of one process.

    Args:
        train, val: manifests (JSONL).
        batch_size: utterances.
        seed: of the order.
    """

    def __init__(self, train: str, val: str, batch_size: int = 12, seed: int = 0) -> None:
        super().__init__()
        self.paths = {"train": train, "val": val}
        self.batch_size, self.seed = batch_size, seed
        self.rows: dict[str, list[dict[str, Tensor]]] = {}

    def setup(self, stage: str) -> None:
        """Read both manifests and their latents.

        Raises:
            FileNotFoundError: if a manifest or a latents file is not there.
            ValueError: naming the manifest, the line, and what is wrong there; or if there are several processes.
        """
        if self.trainer is not None and self.trainer.world_size > 1:
            raise ValueError("LatentDataModule serves one process: set trainer.devices and trainer.num_nodes to 1")
        num_units = getattr(self.trainer.lightning_module, "num_units", None) if self.trainer else None
        for split, path in self.paths.items():
            self.rows[split] = self.rows.get(split) or read_latents(path, num_units)

    def statistics(self) -> tuple[Tensor, Tensor]:
        """Mean of the training latents per channel `[C]`, and one standard deviation around it for all channels."""
        frames = torch.cat([row["latents"] for row in self.rows["train"]]).float()
        mean = frames.mean(dim=0)
        return mean, (frames - mean).square().mean().sqrt()

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, similar lengths together."""
        rows: Any = self.rows["train"]
        lengths = [len(row["latents"]) for row in rows]
        order = _ByLength(lengths, self.batch_size, self.seed, self._epoch)
        return DataLoader(rows, batch_sampler=order, collate_fn=_collate)

    def _epoch(self) -> int:
        return self.trainer.current_epoch if self.trainer is not None else 0

    def val_dataloader(self) -> DataLoader[Any]:
        """In the order of the manifest."""
        rows: Any = self.rows["val"]
        return DataLoader(rows, batch_size=self.batch_size, collate_fn=_collate)


class _ByLength(Sampler[list[int]]):
    """Batches of similar length, drawn anew in each epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int, epoch: Callable[[], int]) -> None:
        # Asked and not told: Lightning calls `set_epoch` of samplers, never of a batch sampler.
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        order, size = torch.randperm(len(self.lengths), generator=generator).tolist(), self.batch_size
        pools = [order[i : i + POOL * size] for i in range(0, len(order), POOL * size)]
        order = [index for pool in pools for index in sorted(pool, key=self.lengths.__getitem__)]
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        return iter([batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()])


def read_latents(path: str | Path, num_units: int | None = None) -> list[dict[str, Tensor]]:
    """Records of a manifest: `units` `[U]`, `durations` `[U]`, `latents` `[F, C]` (as stored).

    Raises:
        FileNotFoundError, ValueError: see `LatentDataModule.setup`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such manifest of units and latents")
    rows = []
    for number, line in read_lines(path):
        try:
            record: dict[str, Any] = json.loads(line)
            row = {name: torch.tensor(record[name], dtype=torch.long) for name in ("units", "durations")}
            file = path.parent / record["latents"]
            if not file.is_file():
                raise FileNotFoundError(f"{path}, line {number}: {file} is not there")
            row["latents"] = read_tensors(file)["latents"]
            _check(row, num_units)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}, line {number}: {error}") from error
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: holds no utterance")
    return rows


def _check(row: dict[str, Tensor], num_units: int | None) -> None:
    units, durations, frames = row["units"], row["durations"], len(row["latents"])
    if units.dim() != 1 or not len(units) or len(units) != len(durations):
        raise ValueError(f"{len(units)} units and {len(durations)} durations; there is one for each, and at least one")
    if int(durations.min()) < 1 or int(durations.sum()) != frames:
        raise ValueError(f"durations are at least 1 and sum to the {frames} latents, these sum to {durations.sum()}")
    if int(units.min()) < 0 or (num_units is not None and int(units.max()) >= num_units):
        raise ValueError(f"units {units.min()} ... {units.max()}, the vocoder has 0 ... {num_units} - 1")


def _collate(rows: list[dict[str, Tensor]]) -> LatentBatch:
    padded = {name: pad_sequence([row[name] for row in rows], batch_first=True) for name in rows[0]}
    return LatentBatch(padded["units"], padded["durations"], padded["latents"].float())
