"""Speak many texts to files with several processes: every file is either finished or absent.

Apart from `corpus`, because each process imports this module, and it should start fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from speechzoo.audio import SAMPLE_RATE, resample, write_audio
from speechzoo.quickstart.apart import follow_parent
from speechzoo.quickstart.voice import PiperVoice
from speechzoo.system.digests import sealed_tensors
from speechzoo.system.files import write_atomically


@dataclass(frozen=True)
class Utterance:
    """What to say, how, and where the sound goes; see `PiperVoice.speak` for speed, noise and seed."""

    text: str
    speed: float
    noise: float
    seed: int
    file: str  # relative to the folder that `speak_all` is given
    latents: str = ""  # likewise: where the voice's latents go, as half precision safetensors; empty: nowhere

    @property
    def files(self) -> list[str]:
        """All it is kept in."""
        return [self.file, self.latents] if self.latents else [self.file]


def speak_all(folder: Path, voice: PiperVoice, utterances: Sequence[Utterance], workers: int) -> Iterator[None]:
    """Write every utterance as 16 kHz 16-bit audio, in ``workers`` processes; yields once for each finished file.

    With one worker everything happens in this process.
    """
    return with_voice(_speak, folder, voice, utterances, workers)


def with_voice(
    work: Callable[[Path, PiperVoice, Any], None], folder: Path, voice: PiperVoice, items: Sequence[Any], workers: int
) -> Iterator[None]:
    """Call ``work(folder, voice, item)``, a module's function, for every item; each process has the voice once.

    Yields once for each finished item. With one worker everything happens in this process.
    """
    workers = min(workers, len(items))
    if workers <= 1:
        for item in items:
            work(folder, voice, item)
            yield
        return
    # Spawned, not forked: onnxruntime's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    start = (work, folder, voice.paths)
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=start) as pool:
        try:
            yield from pool.map(_in_worker, items, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: tuple[Callable[[Path, PiperVoice, Any], None], Path, PiperVoice]  # what a process keeps between items


def _start_worker(
    work: Callable[[Path, PiperVoice, Any], None], folder: Path, voice_paths: tuple[Path, Path, Path]
) -> None:
    global _worker
    follow_parent()  # else workers of a killed run wait for work for ever
    _worker = (work, folder, PiperVoice(*voice_paths))


def _in_worker(item: Any) -> None:
    work, folder, voice = _worker
    work(folder, voice, item)


def write_sound(target: Path, samples: np.ndarray) -> None:
    """Write samples `[T]` at 16 kHz; the file appears whole or not at all."""
    unfinished = target.with_name(f".{os.getpid()}-{target.name}")
    write_audio(unfinished, samples)
    unfinished.replace(target)


def _speak(folder: Path, voice: PiperVoice, utterance: Utterance) -> None:
    said = (utterance.text, utterance.speed, utterance.noise, utterance.seed)
    if utterance.latents:
        samples, latents = voice.speak_with_latents(*said)
        held = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float16))
        write_atomically(folder / utterance.latents, sealed_tensors({"latents": held}))
    else:
        samples = voice.speak(*said)
    write_sound(folder / utterance.file, resample(samples, voice.sample_rate, SAMPLE_RATE))
