"""Reading, checking, resampling and writing sound."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from speechzoo.audio.mel import SAMPLE_RATE
from speechzoo.audio.streams import Stream, streams
from speechzoo.system.files import write_atomically

LOUDEST = 8.0
"""Full scale is 1. Float sound may go beyond it (mastered music does by some decibels); what is 18 dB above it is none
but whole numbers that nobody scaled."""

SILENCE = 10 ** (-60 / 20)
"""Peak (60 dB below full scale) under which a clip counts as silent."""

PLACEHOLDER = 0x7FFF_0000
"""Programs that write to a pipe declare a data size from here up, because they do not know it: not a cut-off file."""

DECLARED = re.compile(r"^\s*(?:data|SSND|riff|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)

BLOCK = 1 << 16  # samples


class SoundError(ValueError):
    """Sound that cannot be used: `problem` names it and says why, `hint` what to do."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(f"{problem}: {hint}")
        self.problem, self.hint = problem, hint


def read_audio(path: str | Path | BinaryIO, sample_rate: int = SAMPLE_RATE, name: str | None = None) -> Tensor:
    """Mono float samples of a sound file of any rate and channel count (wav, flac, ogg, mp3), all that it holds.

    What headers say of the length is not trusted: joined files and chained streams are read one after the other, and
    streams of unknown length to their end.

    Shape: `[T]`, float32, full scale is 1, at `sample_rate` Hz.

    Args:
        path: the file, by name or open.
        name: what messages call it; default: its path.

    Raises:
        FileNotFoundError: if there is no such file.
        SoundError: if it is empty, cut off, cannot be decoded, or holds values that are not finite or far beyond full
            scale; the message names the file. It is a ValueError.
    """
    named = str(name or path)
    if isinstance(path, (str, Path)):
        if not Path(path).is_file():
            raise FileNotFoundError(f"{named}: no such audio file")
        if Path(path).suffix.lower() == ".raw":  # without a header: libsndfile would want to be told all
            raise _undecodable(named, "a .raw file does not say what its samples are")
        content = Path(path).read_bytes()
    else:
        content = path.read()
    pieces: list[tuple[np.ndarray, int]] = []
    try:
        pieces = [_decode(stream, named) for stream in streams(content)]
    except (soundfile.LibsndfileError, TypeError) as error:
        raise _undecodable(named, getattr(error, "error_string", error)) from error
    count = sum(len(samples) for samples, _ in pieces)
    if count == 0:
        raise SoundError(f"{named}: holds no samples", AGAIN)
    rates = {rate for _, rate in pieces}
    if len(rates) == 1:  # resampled as one: each part alone would begin and end with the filter's edge
        pieces = [(_joined([samples for samples, _ in pieces]), rates.pop())]
    audio = _joined([resample(samples, rate, sample_rate) for samples, rate in pieces])
    if not len(audio):
        rate = pieces[0][1]
        raise SoundError(f"{named}: {count} sample(s) at {rate} Hz are none at {sample_rate} Hz", AGAIN)
    return torch.from_numpy(audio)


AGAIN = "record or convert it again, or remove it"


class _Forward(soundfile.SoundFile):
    """Read from front to back: after each read soundfile seeks to where it is, which unknown lengths do not allow."""

    def seekable(self) -> bool:
        return False


def _decode(stream: Stream, named: str) -> tuple[np.ndarray, int]:
    """Mono samples `[T]` of one stream, and its rate."""
    blocks = []
    with _Forward(stream.open()) as sound:
        rate, frames, log = sound.samplerate, sound.frames, sound.extra_info
        while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
            check_level(block, named)
            blocks.append(block[:, 0] if block.shape[1] == 1 else block.mean(axis=1))
    count = sum(map(len, blocks))
    missing = max(stream.missing, _short_of(stream.least, count))
    if declared := DECLARED.search(log):  # libsndfile repairs the length of a cut wav, and only its log tells
        if int(declared[1]) < PLACEHOLDER:
            missing = max(missing, _short_of(int(declared[1]), int(declared[2])))
    elif frames < UNKNOWN and not stream.endless:
        missing = max(missing, _short_of(frames, count))
    if missing > 0.01:
        raise SoundError(f"{named}: cut off, {missing:.0%} of the declared sound is missing", "copy the file again")
    if stream.cut:
        raise SoundError(f"{named}: cut off, it ends inside a frame or lacks some", "copy the file again")
    return _joined(blocks), rate


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    if len(parts) == 1:
        return parts[0]
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


UNKNOWN = 1 << 62


def _short_of(declared: int, found: int) -> float:
    return 1 - found / declared if declared > 0 else 0.0


def _undecodable(named: str, why: object) -> SoundError:
    return SoundError(f"{named}: cannot be decoded as audio ({why})", AGAIN)


def check_level(samples: np.ndarray, named: str) -> float:
    """The peak of samples of any shape.

    Raises:
        SoundError: if there are values that are not finite, or so far beyond full scale that they are not scaled.
    """
    peak = abs(float(np.maximum(samples.max(initial=0.0), -samples.min(initial=0.0))))  # NaN stays NaN
    if not peak < float("inf"):
        raise SoundError(f"{named}: holds values that are not finite", AGAIN)
    if peak > LOUDEST:
        hint = "divide them by the range of the numbers they were, 32768 for 16 bits"
        raise SoundError(f"{named}: holds samples up to {peak:.6g}, where full scale is 1", hint)
    return peak


def check_question(audio: Tensor, named: str) -> Tensor:
    """A clip that a model can be asked with, as it is.

    Raises:
        SoundError: if it is silent.
    """
    peak = check_level(audio.numpy(), named)
    if peak < SILENCE:
        hint = "it is only silence; remove it, or raise the level (is the microphone on?)"
        raise SoundError(f"{named}: silent (peak {peak:.1e} of full scale)", hint)
    return audio


def from_array(samples: Any, named: str) -> Tensor:
    """Samples `[T]` as float32, full scale 1; whole numbers of 8, 16 and 32 bits are divided by their range.

    Raises:
        SoundError: if they are not `[T]`, empty, of another type, not finite, or far beyond full scale.
    """
    array = samples.detach().cpu() if isinstance(samples, Tensor) else samples
    array = array.float().numpy() if isinstance(array, Tensor) and array.is_floating_point() else np.asarray(array)
    if array.ndim != 1 or not len(array):
        raise SoundError(f"{named}: an audio array is [T] samples at 16 kHz, not of shape {list(array.shape)}", AGAIN)
    if array.dtype == np.uint8:
        array = (array.astype(np.float32) - 128) / 128
    elif array.dtype in (np.int8, np.int16, np.int32):
        array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
    elif array.dtype.kind != "f":
        hint = "give float samples in [-1, 1], or int16"
        raise SoundError(f"{named}: samples of type {array.dtype} have no known full scale", hint)
    array = np.ascontiguousarray(array, dtype=np.float32)
    check_level(array, named)
    return torch.from_numpy(array.copy() if array is samples else array)


def resample(samples: np.ndarray, rate: int, to_rate: int = SAMPLE_RATE) -> np.ndarray:
    """Samples `[T]` at `rate` Hz brought to `to_rate` Hz (soxr, high quality)."""
    if rate == to_rate:
        return np.ascontiguousarray(samples, dtype=np.float32)
    resampled: np.ndarray = soxr.resample(samples, rate, to_rate, quality="HQ").astype(np.float32)
    return resampled


def sound_bytes(samples: Tensor | np.ndarray, sample_rate: int = SAMPLE_RATE, kind: str = "FLAC") -> bytes:
    """Mono samples `[T]` as a sound file of 16-bit PCM."""
    data = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
    held = io.BytesIO()
    soundfile.write(held, data, sample_rate, subtype="PCM_16", format=kind)
    return held.getvalue()


def write_audio(path: str | Path, samples: Tensor | np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono samples `[T]` as 16-bit PCM, whole or not at all; the suffix names the format."""
    write_atomically(path, sound_bytes(samples, sample_rate, Path(path).suffix[1:].upper()))
