"""What happens to speech between a mouth and a recording: another throat, a room, a cheap microphone, noise, level.

Synthetic voices are cleaner than people's recordings; an adaptor that learns from distorted ones hears people better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from speechzoo.audio import SAMPLE_RATE, resample


@dataclass(frozen=True)
class Distortion:
    """How a clip is changed; the defaults change nothing."""

    throat: float = 1.0  # pitch and formants, and the tempo with them: 1.1 is higher and 10 % shorter
    room: float = 0.0  # seconds in which echoes fall by 60 dB
    band: float = 0.0  # Hz above which the microphone hears nothing; 0: all
    snr: float | None = None  # dB of speech over noise; None: no noise
    color: float = 0.0  # of the noise: power falls with frequency to this power; 0 white, 1 pink, 2 brown
    level: float = 0.0  # dB


def draw(rng: np.random.Generator) -> Distortion:
    """A distortion as recordings have it: each kind in some of the clips."""
    return Distortion(
        throat=float(rng.uniform(0.88, 1.16)) if rng.random() < 0.6 else 1.0,
        room=float(rng.uniform(0.1, 0.5)) if rng.random() < 0.3 else 0.0,
        band=float(rng.uniform(3400, 7000)) if rng.random() < 0.25 else 0.0,
        snr=float(rng.uniform(8, 35)) if rng.random() < 0.5 else None,
        color=float(rng.uniform(0, 2)),
        level=float(rng.uniform(-18, 3)),
    )


def distort(samples: np.ndarray, how: Distortion, seed: int) -> np.ndarray:
    """Speech as it was recorded under `how`: float32 ``[T']`` at 16 kHz, within [-1, 1].

    Args:
        samples: float32 ``[T]`` at 16 kHz.
        seed: of echoes and noise.
    """
    rng = np.random.default_rng(seed)
    if how.throat != 1.0:
        samples = resample(samples, SAMPLE_RATE, round(SAMPLE_RATE / how.throat))
    if how.room:
        samples = _echo(samples, how.room, rng)
    if how.snr is not None:
        noise = _noise(len(samples), how.color, rng)
        samples = samples + noise * (np.std(samples) / max(np.std(noise), 1e-9) * 10 ** (-how.snr / 20))
    if how.band:
        spectrum = np.fft.rfft(samples)
        spectrum[np.fft.rfftfreq(len(samples), 1 / SAMPLE_RATE) > how.band] = 0
        samples = np.fft.irfft(spectrum, len(samples))
    samples = samples * 10 ** (how.level / 20)
    return (samples / max(1.0, float(np.abs(samples).max(initial=0.0)))).astype(np.float32)


def _echo(samples: np.ndarray, seconds: float, rng: np.random.Generator) -> np.ndarray:
    """The sound with a diffuse tail, as loud together as before."""
    count = int(seconds * SAMPLE_RATE)
    tail = rng.standard_normal(count) * 10 ** (-3 * np.arange(count) / count)
    tail *= rng.uniform(0.2, 0.7) / np.sqrt((tail**2).sum())
    tail[0] += 1.0
    size = len(samples) + count
    wet = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(tail, size), size)[: len(samples)]
    changed: np.ndarray = wet * (np.std(samples) / max(float(np.std(wet)), 1e-9))
    return changed


def _noise(count: int, color: float, rng: np.random.Generator) -> np.ndarray:
    spectrum = np.fft.rfft(rng.standard_normal(count))
    spectrum /= np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20.0) ** (color / 2)
    noise: np.ndarray = np.fft.irfft(spectrum, count)
    return noise
