"""Sound of any kind becomes the 16 kHz mono that Whisper's log-mel is made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import whisper
from torch.nn.utils.rnn import pad_sequence

from speechzoo.audio import MAX_SAMPLES, SAMPLE_RATE, log_mel, mel_lens, read_audio, resample, write_audio

SECONDS = 0.8


def sines(rate: int, channels: int = 1, pitches: tuple[float, ...] = (300.0, 440.0)) -> np.ndarray:
    """One sine per channel; their mean is what mono should be."""
    t = np.arange(int(SECONDS * rate)) / rate
    return np.stack([0.4 * np.sin(2 * np.pi * pitches[c] * t) for c in range(channels)], axis=1).astype(np.float32)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 48_000])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_any_rate_channel_count_and_format(tmp_path: Path, suffix: str, rate: int, channels: int):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sines(rate, channels), rate)
    read = read_audio(path)
    assert read.dtype == torch.float32 and read.ndim == 1
    expected = torch.from_numpy(sines(SAMPLE_RATE, channels).mean(axis=1))
    assert abs(len(read) - len(expected)) <= (1 if suffix in ("wav", "flac") else 400)
    middle = slice(3000, 9000)  # past the filters' and codecs' edges
    tolerance = 2e-3 if suffix in ("wav", "flac") else 5e-2
    torch.testing.assert_close(read[middle], expected[middle], atol=tolerance, rtol=0)


def test_samples_at_16_khz_come_through_untouched(tmp_path: Path):
    samples = np.round(sines(SAMPLE_RATE)[:, 0] * 32768) / 32768
    write_audio(tmp_path / "a.wav", torch.from_numpy(samples))
    assert read_audio(tmp_path / "a.wav").numpy().tolist() == samples.tolist()


def test_another_rate_can_be_asked_for(tmp_path: Path):
    write_audio(tmp_path / "a.wav", sines(SAMPLE_RATE)[:, 0])
    assert len(read_audio(tmp_path / "a.wav", 8_000)) == int(SECONDS * 8_000)


def test_resampling_removes_what_the_lower_rate_cannot_hold():
    high = np.sin(2 * np.pi * 7_000 * np.arange(32_000) / 32_000).astype(np.float32)
    assert np.abs(resample(high, 32_000, 8_000)[500:-500]).max() < 1e-3


def test_files_that_cannot_be_read_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="none.wav: no such audio file"):
        read_audio(tmp_path / "none.wav")
    with pytest.raises(FileNotFoundError, match="no such audio file"):
        read_audio(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, 4000, dtype=np.uint8).tobytes()
    for name, content in {"noise.wav": noise, "empty.wav": b"", "text.flac": b"hello", "samples.raw": noise}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}: cannot be decoded as audio"):
            read_audio(tmp_path / name)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0, np.float32), 16_000)
    with pytest.raises(ValueError, match="nothing.wav: holds no samples"):
        read_audio(tmp_path / "nothing.wav")


@pytest.fixture(scope="module")
def clips() -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """Clips of awkward lengths and very different loudness, their padded batch, and their lengths."""
    generator = torch.Generator().manual_seed(0)
    lens = [16_000, 5_119, 5_120, 5_121, 401, 160, 1]
    rows = [torch.randn(n, generator=generator) * 0.3 * 10.0**-i for i, n in enumerate(lens)]
    return rows, pad_sequence(rows, batch_first=True), torch.tensor(lens)


@pytest.mark.parametrize("n_mels", [80, 128])
def test_padded_mel_is_whispers_own(clips, n_mels: int):
    rows, audio, lens = clips
    mel, frames = log_mel(audio[:3], lens[:3], n_mels)
    assert frames.tolist() == [3000] * 3
    for row, got in zip(rows, mel, strict=False):
        theirs = whisper.log_mel_spectrogram(whisper.pad_or_trim(row), n_mels)
        torch.testing.assert_close(got, theirs, atol=1e-5, rtol=0)


def test_trimmed_clips_come_out_as_alone(clips):
    """Cached features must not depend on the batch they were made in, but for rounding: FFTs depend on alignment."""
    rows, audio, lens = clips
    mel, frames = log_mel(audio, lens, 80, pad_to=None)
    assert frames.equal(mel_lens(lens)) and mel.shape[-1] == int(frames.max())
    for index, row in enumerate(rows):
        alone, length = log_mel(row[None], lens[index : index + 1], 80, pad_to=None)
        torch.testing.assert_close(alone[0], mel[index, :, : int(length)], atol=1e-5, rtol=0)
        assert not mel[index, :, int(length) :].any()


def test_trimmed_frames_are_those_of_the_padded_window(clips):
    """Up to the clip's end both hear the same sound followed by silence; only the floor may differ, by nothing."""
    _, audio, lens = clips
    padded, _ = log_mel(audio[:1], lens[:1], 80)
    trimmed, frames = log_mel(audio[:1], lens[:1], 80, pad_to=None)
    torch.testing.assert_close(trimmed[0], padded[0, :, : int(frames)], atol=1e-5, rtol=0)


def test_mel_frames_are_two_for_each_started_encoder_frame():
    assert mel_lens(torch.tensor([1, 320, 321, 640, 641, MAX_SAMPLES])).tolist() == [2, 2, 4, 4, 6, 3000]


def test_a_clip_longer_than_the_window_is_refused_not_cut():
    audio = torch.zeros(2, MAX_SAMPLES + 1600)
    with pytest.raises(ValueError, match=r"a clip of 30\.1 s is longer than the encoder's 30 s window: split it"):
        log_mel(audio, torch.tensor([16_000, MAX_SAMPLES + 1600]), 80)
    assert log_mel(audio, torch.tensor([16_000, MAX_SAMPLES]), 80)[0].shape == (2, 80, 3000)  # padding only


def test_autocast_does_not_reach_the_mel(clips):
    _, audio, lens = clips
    plain, _ = log_mel(audio, lens, 80, pad_to=None)
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = log_mel(audio, lens, 80, pad_to=None)
    assert inside.dtype == torch.float32
    assert inside.equal(plain)
