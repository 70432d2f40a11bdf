"""States of a frozen encoder kept on disk, so that each epoch and each run of a sweep skips the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import soundfile
import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import SAMPLE_RATE
from speechzoo.data.sources import clip_file, clip_stamp, read_clip
from speechzoo.data.tensor_files import TensorFiles, batches_within, share
from speechzoo.encoders.base import Encoder
from speechzoo.files import write_atomically


class FeatureCache(TensorFiles):
    """Encoder states by sound file, as half precision on disk.

    A file is known by its path, size and time of change, an encoder by its fingerprint; when one of them changes the
    old states are not found any more. The folder has to be visible to every process.

    Args:
        folder: where the states are kept; several encoders may share it.
        fingerprint: `Encoder.fingerprint` of the encoder they come from.
    """

    def __init__(self, folder: str | Path, fingerprint: str) -> None:
        super().__init__(folder, fingerprint)
        self.fingerprint = fingerprint

    def file(self, path: str | Path) -> Path:
        """Where the states of a sound file are, or will be.

        Raises:
            FileNotFoundError: if there is no such sound file.
        """
        return self.place(clip_key(path))

    def missing(self, paths: Iterable[str | Path]) -> list[Path]:
        """Those of the sound files that have no states yet, each once, sorted."""
        return [path for path in sorted({Path(path) for path in paths}) if not self.file(path).exists()]

    def get(self, path: str | Path) -> Tensor:
        """States of one sound file. Shape: `[F, D]`, float32.

        Raises:
            FileNotFoundError: if they are not in the cache.
            ValueError: if their file is damaged.
        """
        told = f"{path}: no cached features", f"{path}: its cached features are damaged"
        return self.read(self.file(path), *told)["states"].float()

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
        frames = int(encoder.out_lens(torch.tensor(lengths)).sum())
        self.check_room(f"feature cache: {len(lengths)} clips", frames * encoder.out_dim * 2)
        batches = batches_within(range(len(paths)), lengths, batch_seconds * SAMPLE_RATE)
        for batch, own in share(batches, rank, world_size, "encoding speech", progress):
            states = encode([paths[index] for index in batch], encoder)
            for index, value in zip(batch, states, strict=True) if own else ():
                half = value.half()
                if not half.isfinite().all():
                    raise ValueError(f"{paths[index]}: encoder states do not fit half precision (65504); do not cache")
                write_atomically(self.file(paths[index]), save({"states": half.cpu().contiguous()}))


def clip_key(path: str | Path) -> str:
    """What a sound is known by: a hash of its path, size and time of change, or those of its shard (64 hex digits).

    Raises:
        FileNotFoundError: if there is no such sound file.
    """
    return hashlib.sha256(clip_stamp(path).encode()).hexdigest()


@torch.inference_mode()
def encode(paths: Sequence[str | Path], encoder: Encoder) -> list[Tensor]:
    """States of sound files in one forward pass, each as long as its clip. Shape: N times `[F, D]`."""
    audio = [read_clip(path) for path in paths]
    device = next(encoder.parameters()).device
    states, lens = encoder(
        pad_sequence(audio, batch_first=True).to(device), torch.tensor([len(clip) for clip in audio], device=device)
    )
    return [row[:length] for row, length in zip(states, lens.tolist(), strict=True)]


def _samples(path: str | Path) -> int:
    """16 kHz samples by the header, good enough to plan; where that does not know or may be wrong, by decoding."""
    with soundfile.SoundFile(clip_file(path)) as sound:
        if sound.format in ("WAV", "AIFF") or (sound.format == "FLAC" and sound.frames < 1 << 36):
            return int(sound.frames * SAMPLE_RATE / sound.samplerate) + 1
    return len(read_clip(path))
