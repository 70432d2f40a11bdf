"""Sound: files read to their real end, checked, resampled to 16 kHz, as log-mel."""

from speechzoo.audio.mel import FRAME, HOP, MAX_SAMPLES, MAX_SECONDS, N_FFT, SAMPLE_RATE, log_mel, mel_filters, mel_lens
from speechzoo.audio.sound import (
    LOUDEST,
    SILENCE,
    SoundError,
    check_level,
    check_question,
    from_array,
    read_audio,
    resample,
    sound_bytes,
    write_audio,
)

__all__ = [
    "FRAME",
    "HOP",
    "LOUDEST",
    "MAX_SAMPLES",
    "MAX_SECONDS",
    "N_FFT",
    "SAMPLE_RATE",
    "SILENCE",
    "SoundError",
    "check_level",
    "check_question",
    "from_array",
    "log_mel",
    "mel_filters",
    "mel_lens",
    "read_audio",
    "resample",
    "sound_bytes",
    "write_audio",
]
