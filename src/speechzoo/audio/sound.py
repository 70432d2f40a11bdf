"""Reading sound and turning it into Whisper's log-mel: the one place that knows 16 kHz."""

from __future__ import annotations

import os
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

from speechzoo.audio.streams import Stream, streams

SAMPLE_RATE = 16_000  # Hz, Whisper's
N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms: one mel frame
FRAME = 2 * HOP  # samples per encoder frame (20 ms): Whisper's second convolution halves the rate
MAX_SECONDS = 30.0  # Whisper's window
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)


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
        if not os.path.isfile(path):
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
    return soxr.resample(samples, rate, to_rate, quality="HQ").astype(np.float32)


def write_audio(path: str | Path, samples: Tensor | np.ndarray, sample_rate: int = SAMPLE_RATE) -> None:
    """Write mono samples `[T]` as 16-bit PCM; the suffix names the format."""
    data = samples.detach().cpu().numpy() if isinstance(samples, Tensor) else samples
    soundfile.write(str(path), data, sample_rate, subtype="PCM_16")


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> Tensor:
    """Whisper's own filter bank `[n_mels, 201]` (80 or 128 mels)."""
    from whisper.audio import mel_filters as stored

    return stored("cpu", n_mels)


def mel_lens(audio_lens: Tensor) -> Tensor:
    """Mel frames of clips trimmed to their real length: two for each started encoder frame. `[N] -> [N]`."""
    return 2 * ((audio_lens + FRAME - 1) // FRAME)


def log_mel(
    audio: Tensor,
    audio_lens: Tensor,
    n_mels: int,
    pad_to: int | None = MAX_SAMPLES,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Whisper's log-mel of a zero-padded batch; every clip comes out as it would alone.

    With `pad_to=480_000` this is `whisper.log_mel_spectrogram(whisper.pad_or_trim(clip))`, 3000 frames whatever the
    length. With `pad_to=None` each clip is `mel_lens` frames long and the rest of its row is 0: the silence that
    follows is not computed. The floor (8 below the loudest bin) is taken per clip, as for a single clip.

    `dtype` is that of the arithmetic, the result is float32. FFT kernels of different machines differ by some 4e-5 in
    float32, so `torch.float64` is what to compare with.

    Shape: `[N, T], [N] -> [N, n_mels, frames], [N]` (frames of 10 ms).

    Raises:
        ValueError: if a clip is longer than `pad_to`; nothing is cut silently.
    """
    if pad_to is not None:
        if audio.shape[1] > pad_to and int(audio_lens.max()) > pad_to:
            raise ValueError(
                f"a clip of {int(audio_lens.max()) / SAMPLE_RATE:.1f} s is longer than the encoder's "
                f"{pad_to / SAMPLE_RATE:.0f} s window: split it"
            )
        audio = F.pad(audio, (0, pad_to - audio.shape[1]))
        lens = torch.full_like(audio_lens, pad_to // HOP)
    else:
        lens = mel_lens(audio_lens)
        # Zeros after the end, so that no clip sees the reflection that centred STFT makes at the end of the batch.
        audio = F.pad(audio, (0, int(lens.max()) * HOP + N_FFT - audio.shape[1]))
    window = torch.hann_window(N_FFT, dtype=torch.float32, device=audio.device).to(dtype)  # default may be bfloat16
    spectrum = torch.stft(audio.to(dtype), N_FFT, HOP, window=window, return_complex=True)[..., :-1].abs() ** 2
    spectrum = spectrum[..., : int(lens.max())]
    with torch.autocast(audio.device.type, enabled=False):  # eight bits of mantissa would be heard
        logs = (mel_filters(n_mels).to(audio.device, dtype) @ spectrum).clamp(min=1e-10).log10()
    inside = torch.arange(logs.shape[-1], device=audio.device) < lens[:, None]
    peak = logs.masked_fill(~inside[:, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
    logs = (torch.maximum(logs, peak - 8.0) + 4.0) / 4.0
    return (logs * inside[:, None]).float(), lens
