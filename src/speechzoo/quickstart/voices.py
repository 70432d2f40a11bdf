"""Voices beside the corpus's own, to learn hearing from: any English text, 16 kHz, equal calls give equal samples."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from speechzoo.audio import SAMPLE_RATE, resample

FLITE = ("awb", "rms", "slt", "kal16")
"""Voices of CMU Flite: a Scottish man, two Americans of CMU Arctic, a diphone voice."""
OTHERS = ("heart", *(f"flite-{name}" for name in FLITE))


def available() -> list[str]:
    """Names of the other voices that can speak here.

    `heart` takes ``pip install hibari-tts`` (Apache-2.0), the `flite` ones the program of that name (BSD-like; Debian:
    ``apt-get install flite``).
    """
    return [name for name in OTHERS if (shutil.which("flite") if name.startswith("flite-") else _hibari() is not None)]


def speak(name: str, text: str, speed: float = 1.0, seed: int = 0) -> np.ndarray:
    """A sentence in one of `available` voices: float32 ``[T]`` at 16 kHz.

    Args:
        speed: speaking rate; 1.15 is 15 % faster than the voice's own.
        seed: of the noise part of `heart`; the others draw nothing.

    Raises:
        RuntimeError: `flite` failed; the message holds what it said.
    """
    if name == "heart":
        return resample(np.asarray(_hibari()(text, speed=speed, seed=seed), dtype=np.float32), 24000, SAMPLE_RATE)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "spoken.wav")
        voice = name.removeprefix("flite-")
        command = ["flite", "-voice", voice, "--setf", f"duration_stretch={1 / speed}", "-t", text, "-o", str(target)]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode or not target.is_file():
            raise RuntimeError(f"`flite -voice {voice}` failed: {finished.stderr.strip() or finished.returncode}")
        samples, rate = soundfile.read(str(target), dtype="float32")
    return resample(samples, rate, SAMPLE_RATE)


@lru_cache(maxsize=1)
def _hibari() -> Any:
    try:
        from hibari import Hibari
    except ImportError:
        return None
    return Hibari()
