"""Speak many texts to files with several processes: every file is either finished or absent.

Apart from `corpus`, because each process imports this module, and it should start fast.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

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
    workers = min(workers, len(utterances))
    if workers <= 1:
        for utterance in utterances:
            _speak(folder, voice, utterance)
            yield
        return
    # Spawned, not forked: onnxruntime's and torch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=(folder, voice.paths)) as pool:
        try:
            yield from pool.map(_speak_in_worker, utterances, chunksize=4)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


_worker: tuple[Path, PiperVoice]  # what a spawned process keeps between utterances


def _start_worker(folder: Path, voice_paths: tuple[Path, Path, Path]) -> None:
    global _worker
    follow_parent()  # else workers of a killed run wait for work for ever
    _worker = (folder, PiperVoice(*voice_paths))


def _speak_in_worker(utterance: Utterance) -> None:
    _speak(*_worker, utterance)


def _speak(folder: Path, voice: PiperVoice, utterance: Utterance) -> None:
    said = (utterance.text, utterance.speed, utterance.noise, utterance.seed)
    if utterance.latents:
        samples, latents = voice.speak_with_latents(*said)
        held = torch.from_numpy(np.ascontiguousarray(latents, dtype=np.float16))
        write_atomically(folder / utterance.latents, sealed_tensors({"latents": held}))
    else:
        samples = voice.speak(*said)
    target = folder / utterance.file
    unfinished = target.with_name(f".{os.getpid()}-{target.name}")
    write_audio(unfinished, resample(samples, voice.sample_rate, SAMPLE_RATE))
    unfinished.replace(target)
