"""States of a frozen encoder kept on disk, so that each epoch and each run of a sweep skips the encoder."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_info
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from speechzoo.audio import SAMPLE_RATE, read_audio
from speechzoo.data.audio_check import write_atomically
from speechzoo.encoders.base import Encoder


class FeatureCache:
    """Encoder states by sound file, as half precision on disk.

    A file is known by its path, size and time of change, an encoder by its fingerprint; when one of them changes the
    old states are not found any more. The folder has to be visible to every process.

    Args:
        folder: where the states are kept; several encoders may share it.
        fingerprint: `Encoder.fingerprint` of the encoder they come from.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.folder = Path(folder).expanduser().absolute() / hashlib.sha256(fingerprint.encode()).hexdigest()[:16]

    def file(self, path: str | Path) -> Path:
        """Where the states of a sound file are, or will be.

        Raises:
            FileNotFoundError: if there is no such sound file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such audio file")
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()
        return self.folder / key[:2] / f"{key[2:34]}.safetensors"

    def missing(self, paths: Iterable[str | Path]) -> list[Path]:
        """Those of the sound files that have no states yet, each once, sorted."""
        return [path for path in sorted({Path(path) for path in paths}) if not self.file(path).exists()]

    def get(self, path: str | Path) -> Tensor:
        """States of one sound file. Shape: `[F, D]`, float32.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        file = self.file(path)
        try:
            return load_file(file)["states"].float()
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{path}: no cached features in {self.folder} (the sound file changed after the cache was built, "
                "or the folder is not shared between machines)"
            ) from error
        except SafetensorError as error:
            raise ValueError(f"{path}: its cached features are damaged; delete {file}") from error

    def build(
        self,
        paths: Sequence[str | Path],
        encoder: Encoder,
        batch_seconds: float = 120.0,
        progress: bool = True,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Run the encoder over sound files and keep its states.

        With several processes each does its share; all make the same number of forward passes, so the encoder may be
        sharded. Give every process the same list (`missing()` of one of them).

        Args:
            batch_seconds: sound per forward pass, in seconds, padding included.

        Raises:
            OSError: if the disk has too little room.
            ValueError: if `encoder` is another one than the cache is for, or gives states outside half precision.
        """
        if encoder.fingerprint != self.fingerprint:
            raise ValueError("the feature cache is for another encoder: make a FeatureCache with its fingerprint")
        if not paths:
            return
        lengths = [_samples(path) for path in paths]
        self._check_room(lengths, encoder)
        order = sorted(range(len(paths)), key=lambda index: lengths[index])
        batches: list[list[int]] = [[]]
        for index in order:
            if batches[-1] and (len(batches[-1]) + 1) * lengths[index] > batch_seconds * SAMPLE_RATE:
                batches.append([])
            batches[-1].append(index)
        steps = range(0, len(batches), world_size)
        # Not rich: it allows one live display, and Lightning's may already run when loaders are made.
        for step in tqdm(steps, "encoding speech", disable=not progress or rank != 0):
            # A rank without a batch repeats the last one: a sharded encoder needs all ranks in each forward pass.
            batch = batches[min(step + rank, len(batches) - 1)]
            states = encode([paths[index] for index in batch], encoder)
            for index, value in zip(batch, states if step + rank < len(batches) else [], strict=False):
                half = value.half()
                if not half.isfinite().all():
                    raise ValueError(f"{paths[index]}: encoder states do not fit half precision (65504); do not cache")
                write_atomically(self.file(paths[index]), save({"states": half.cpu().contiguous()}))

    def _check_room(self, lengths: Sequence[int], encoder: Encoder) -> None:
        need = int(encoder.out_lens(torch.tensor(lengths)).sum()) * encoder.out_dim * 2
        self.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.folder).free
        text = f"feature cache: {len(lengths)} clips need {need / 1e9:.2f} GB of {free / 1e9:.1f} GB in {self.folder}"
        if need > free:
            raise OSError(text)
        rank_zero_info(text)


@torch.inference_mode()
def encode(paths: Sequence[str | Path], encoder: Encoder) -> list[Tensor]:
    """States of sound files in one forward pass, each as long as its clip. Shape: N times `[F, D]`."""
    audio = [read_audio(path) for path in paths]
    device = next(encoder.parameters()).device
    states, lens = encoder(
        pad_sequence(audio, batch_first=True).to(device), torch.tensor([len(clip) for clip in audio], device=device)
    )
    return [row[:length] for row, length in zip(states, lens.tolist(), strict=True)]


def _samples(path: str | Path) -> int:
    """16 kHz samples by the header: good enough to plan, the clip itself is decoded later."""
    info = soundfile.info(path)
    return int(info.frames * SAMPLE_RATE / info.samplerate) + 1
