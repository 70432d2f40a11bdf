"""Speak many texts to files with several processes: every file is either finished or absent.

Apart from `corpus`, because each process imports this module, and it should start fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

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
    file: str  # relative to the folder that `speak_missing` is given
    latents: str = ""  # likewise: where the voice's latents go, as half precision safetensors; empty: nowhere

    @property
    def files(self) -> list[str]:
        """All it is kept in."""
        return [self.file, self.latents] if self.latents else [self.file]


class Spoken(Protocol):
    """What is said once and kept."""

    @property
    def files(self) -> list[str]: ...  # relative to a folder


def speak_missing(
    folder: Path,
    voice: PiperVoice,
    items: Sequence[Spoken],
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    work: Callable[[Path, PiperVoice, Any], None] | None = None,
) -> None:
    """Write the files of all items that are not there yet, so that an interrupted call goes on.

    Args:
        workers: processes; all cores by default, 1 works in this process.
        progress: called as ``progress(done, total)`` with numbers of items, those that were there before included.
        work: see `with_voice`; by default `Utterance`s are written as 16 kHz 16-bit audio.
    """
    missing = [item for item in items if not all((folder / file).is_file() for file in item.files)]
    finished = with_voice(work or _speak, folder, voice, missing, workers or os.cpu_count() or 1)
    for done, _ in enumerate(chain([None], finished), start=len(items) - len(missing)):
        if progress is not None:
            progress(done, len(items))


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


def _speak(folder: Path, voice: PiperVoice, utterance: Utterance) -> None:
    said = (utterance.text, utterance.speed, utterance.noise, utterance.seed)
    if utterance.latents:
        samples, latents = voice.speak_with_latents(*said)
        held = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float16))
        write_atomically(folder / utterance.latents, sealed_tensors({"latents": held}))
    else:
        samples = voice.speak(*said)
    write_audio(folder / utterance.file, resample(samples, voice.sample_rate, SAMPLE_RATE))
