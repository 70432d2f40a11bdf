"""What caches of computed states have in common: files in a folder of the model, room on the disk, shares of ranks."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_info
from torch import Tensor
from tqdm.auto import tqdm

from speechzoo.system.digests import DamagedError, read_tensors, sealed_tensors
from speechzoo.system.files import DiskFullError, size, write_atomically


class TensorFiles:
    """Tensors by key, a safetensors file each.

    Args:
        folder: where they are kept; several models may share it.
        fingerprint: of what computes them; another one finds nothing of this one's.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.folder = Path(folder).expanduser().absolute() / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]

    def place(self, key: str) -> Path:
        """The file of a key (hex digits, at least 34)."""
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def read(self, file: Path, missing: str, damaged: str) -> dict[str, Tensor]:
        """The tensors of a file, by name.

        Args:
            missing, damaged: what to say of a file that is not there, or is not what was written.

        Raises:
            FileNotFoundError: if it is not there.
            ValueError: if it is damaged.
        """
        try:
            return read_tensors(file)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{missing} in {self.folder} (a sound file or record changed after the cache was built, or the folder "
                "is not shared between machines)"
            ) from error
        except DamagedError as error:
            raise ValueError(f"{damaged}; delete {file} and start again: they are computed anew") from error

    def write(self, file: Path, tensors: dict[str, Tensor]) -> None:
        """Keep tensors in a file, with a digest. Two processes may do so at once: each writes the whole file.

        Raises:
            DiskFullError: if the disk has too little room.
        """
        write_atomically(file, sealed_tensors(tensors))

    def check_room(self, what: str, need: int) -> None:
        """Say what will be written and how many bytes it needs.

        Raises:
            DiskFullError: if the disk has less.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        text = f"{what} need {size(need)} of the {size(free)} that are free in {self.folder}"
        if need > free:
            raise DiskFullError(f"{text}: make room there, or choose another folder")
        rank_zero_info(text)


def batches_within(
    numbers: Sequence[int], lengths: Sequence[int], most: float, rows: int | None = None
) -> list[list[int]]:
    """Numbers cut into batches of similar length, of at most `most` in all with padding; a longer one goes alone.

    Args:
        lengths: of each number, in the same order.
        rows: most numbers of a batch.
    """
    batches: list[list[int]] = []
    for length, number in sorted(zip(lengths, numbers, strict=True), key=lambda pair: pair[0]):
        size = len(batches[-1]) + 1 if batches else 1
        if not batches or size * length > most or (rows is not None and size > rows):
            batches.append([])
        batches[-1].append(number)
    return batches


def share(
    batches: Sequence[list[int]], rank: int, world_size: int, name: str, progress: bool
) -> Iterator[tuple[list[int], bool]]:
    """This rank's batches, each with whether it is its own to keep.

    A rank without a batch repeats the last one: a sharded model needs all ranks in each forward pass.
    """
    # Not rich: it allows one live display, and Lightning's may already run when loaders are made.
    hidden = None if progress and rank == 0 else True  # None: shown on a terminal alone
    for step in tqdm(range(0, len(batches), world_size), name, disable=hidden):
        yield batches[min(step + rank, len(batches) - 1)], step + rank < len(batches)
