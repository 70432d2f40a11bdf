"""Whisper's log-mel spectrogram, and its numbers: the one place that knows 16 kHz."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

SAMPLE_RATE = 16_000  # Hz, Whisper's
N_FFT = 400  # samples, 25 ms
HOP = 160  # samples, 10 ms: one mel frame
FRAME = 2 * HOP  # samples per encoder frame (20 ms): Whisper's second convolution halves the rate
MAX_SECONDS = 30.0  # Whisper's window
MAX_SAMPLES = int(MAX_SECONDS * SAMPLE_RATE)


@lru_cache(maxsize=4)
def mel_filters(n_mels: int) -> Tensor:
    """Whisper's own filter bank `[n_mels, 201]` (80 or 128 mels)."""
    from whisper.audio import mel_filters as stored

    filters: Tensor = stored("cpu", n_mels)
    return filters


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
    spectrum = spectrum[..., : int(lens.max()) if pad_to is None else pad_to // HOP]
    with torch.autocast(audio.device.type, enabled=False):  # eight bits of mantissa would be heard
        logs = (mel_filters(n_mels).to(audio.device, dtype, non_blocking=True) @ spectrum).clamp(min=1e-10).log10()
    inside = torch.arange(logs.shape[-1], device=audio.device) < lens[:, None]
    peak = logs.masked_fill(~inside[:, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
    logs = (torch.maximum(logs, peak - 8.0) + 4.0) / 4.0
    return (logs * inside[:, None]).float(), lens
