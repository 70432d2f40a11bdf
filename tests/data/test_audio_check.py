"""Sound files are decoded once, cut-off ones are found, results are remembered."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechzoo.data import audio_check
from speechzoo.data.audio_check import check_audio, inspect_audio, sealed


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    samples = np.random.default_rng(0).normal(0, 0.1, 32_000)
    for suffix in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"a.{suffix}", samples, 16_000)
    return tmp_path


def remembered(memory: Path) -> dict:
    return json.loads(memory.read_text().splitlines()[0])


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_whole_and_cut_files(sound: Path, suffix: str) -> None:
    whole = sound / f"a.{suffix}"
    assert inspect_audio(whole).error is None
    assert inspect_audio(whole).samples == 32_000
    cut = sound / f"cut.{suffix}"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    info = inspect_audio(cut)
    assert info.error and "cut." in info.error
    assert info.samples == 0


def test_cut_wav_says_how_much(sound: Path) -> None:
    cut = sound / "cut.wav"
    cut.write_bytes((sound / "a.wav").read_bytes()[: 44 + 16_000])
    assert "cut off, 75% of the declared sound is missing" in str(inspect_audio(cut).error)


def test_results_of_an_earlier_meaning_are_forgotten(sound: Path, tmp_path: Path) -> None:
    memory = tmp_path / "memory.json"
    info = check_audio([sound / "a.wav"], memory)[sound / "a.wav"]
    old = {key.partition("|")[2]: {**value, "samples": 7} for key, value in remembered(memory).items()}
    memory.write_text(sealed(json.dumps(old)))
    assert check_audio([sound / "a.wav"], memory)[sound / "a.wav"] == info
    assert info.samples == 32_000 and len(remembered(memory)) == 1


def test_sound_inside_a_manifest_is_told() -> None:
    path = Path("data:audio/wav;base64," + "A" * 5000)
    info = check_audio([path])[path]
    assert "sound inside a manifest" in str(info.error) and len(str(info.error)) < 200


def test_piped_wav_is_whole(sound: Path) -> None:
    """Programs that write to a pipe cannot know the size and declare the largest."""
    content = bytearray((sound / "a.wav").read_bytes())
    content[40:44] = b"\xff\xff\xff\xff"
    (sound / "piped.wav").write_bytes(content)
    assert inspect_audio(sound / "piped.wav").samples == 32_000


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "nan.wav", np.array([0.1, np.nan, 0.1] * 1000), 16_000, subtype="FLOAT")
    assert "not finite" in str(inspect_audio(tmp_path / "nan.wav").error)


def test_each_file_is_decoded_once_and_remembered(wavs, tmp_path: Path, monkeypatch) -> None:
    seen: list[Path] = []
    real = audio_check.inspect_audio
    monkeypatch.setattr(audio_check, "inspect_audio", lambda path: seen.append(path) or real(path))
    memory = tmp_path / "deep" / "memory.json"
    first = check_audio([*wavs, *wavs, tmp_path / "no.wav"], memory)
    assert sorted(seen) == sorted([*wavs, tmp_path / "no.wav"])
    assert [first[path].samples for path in wavs] == [16000, 36799, 11200, 24160]
    seen.clear()
    assert check_audio(wavs, memory) == {path: first[path] for path in wavs}
    assert seen == []
    os.utime(wavs[0], ns=(1, wavs[0].stat().st_mtime_ns + 1))
    check_audio([*wavs, tmp_path / "no.wav"], memory)
    assert sorted(seen) == sorted([wavs[0], tmp_path / "no.wav"])  # changed; missing files are never remembered
    whole = memory.read_bytes()
    flipped = [whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(0, len(whole), len(whole) // 60)]
    for damaged in (b"", b"{ damaged", b"[1]", whole[:-1], whole[: len(whole) // 2], json.dumps({}).encode(), *flipped):
        memory.write_bytes(damaged)
        assert check_audio(wavs, memory) == {path: first[path] for path in wavs}
