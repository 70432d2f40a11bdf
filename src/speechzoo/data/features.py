"""States of a frozen encoder kept on disk, so that each epoch and each run of a sweep skips the encoder."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import soundfile
import torch
from lightning.fabric.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import SAMPLE_RATE
from speechzoo.data.sources import clip_file, clip_stamp, read_clip
from speechzoo.data.tensor_files import TensorFiles, batches_within, share
from speechzoo.encoders.base import Encoder


class FeatureCache(TensorFiles):
    """Encoder states by sound file, as half precision on disk.

    A file is known by its path, size and time of change, an encoder by its fingerprint; when one of them changes the
    old states are not found any more. The folder has to be visible to every process.

    Args:
        folder: where the states are kept; several encoders may share it.
        fingerprint: `Encoder.fingerprint` of the encoder they come from.
        precision: the Trainer's, in which they are computed; states of another one are not found.
    """

    def __init__(self, folder: str | Path, fingerprint: str, precision: str = "32-true") -> None:
        super().__init__(folder, fingerprint if precision == "32-true" else f"{fingerprint} {precision}")
        self.fingerprint = fingerprint

    def file(self, path: str | Path) -> Path:
        """Where the states of a sound file are, or will be.

        Raises:
            FileNotFoundError: if there is no such sound file.
        """
        return self.place(clip_key(path))

    def missing(self, paths: Iterable[str | Path]) -> list[str | Path]:
        """Those of the sound files that have no states yet, as they were given, each once, sorted."""
        # Not as paths: those would write some places in shards another way, and hold states that nobody asks for.
        return [path for path in sorted({*paths}, key=str) if not self.file(path).exists()]

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
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        """Run the encoder over sound files and keep its states.

        With several processes each does its share; all make the same number of forward passes, so the encoder may be
        sharded. Give every process the same list (`missing()` of one of them).

        Args:
            batch_seconds: sound per forward pass, in seconds, padding (to the encoder's window too) included.
            context: of the forward passes, such as autocast in the precision of training.

        Raises:
            DiskFullError: if the disk has too little room.
            ValueError: if `encoder` is another one than the cache is for, or gives states outside half precision.
        """
        if encoder.fingerprint != self.fingerprint:
            raise ValueError("the feature cache is for another encoder: make a FeatureCache with its fingerprint")
        if not paths:
            return
        lengths = [_samples(path) for path in paths]
        frames = int(encoder.out_lens(torch.tensor(lengths)).sum())
        self.check_room(f"feature cache: {len(lengths)} clips", frames * encoder.out_dim * 2)
        # Small passes: of 4 padded clips, which stay in the caches of a CPU; and 40 would be 20 minutes of sound.
        computed = encoder.computed_lens(torch.tensor(lengths)).tolist()
        batches = batches_within(range(len(paths)), computed, batch_seconds * SAMPLE_RATE)
        begun = time.monotonic()
        for step, (batch, own) in enumerate(share(batches, rank, world_size, "encoding speech", progress)):
            with context():
                states = encode([paths[index] for index in batch], encoder)
            if step == 0 and progress:
                share_of_sound = sum(computed[index] for index in batch) * world_size / sum(computed)
                about = max(1, round((time.monotonic() - begun) / share_of_sound / 60))
                rank_zero_info(
                    f"feature cache: encoding {len(paths)} clips ({sum(computed) / SAMPLE_RATE / 60:.0f} minutes of "
                    f"sound, the encoder's padding included) before the first step: about {about} min on this device, "
                    "once: later runs find them"
                )
            for index, value in zip(batch, states, strict=True) if own else ():
                half = value.half()
                if not half.isfinite().all():
                    raise ValueError(f"{paths[index]}: encoder states do not fit half precision (65504); do not cache")
                self.write(self.file(paths[index]), {"states": half.cpu().contiguous()})


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
    with suppress(soundfile.LibsndfileError), soundfile.SoundFile(clip_file(path)) as sound:  # joined files may fail
        if sound.frames and (sound.format in ("WAV", "AIFF") or (sound.format == "FLAC" and sound.frames < 1 << 36)):
            return int(sound.frames * SAMPLE_RATE / sound.samplerate) + 1
    return len(read_clip(path))
