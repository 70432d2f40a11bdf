"""Cached states equal the encoder's, are found again, and are refused when they would be wrong."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import shutil
import signal
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from standin import Frames

from speechzoo.audio import read_audio
from speechzoo.data import FeatureCache
from speechzoo.data.features import encode
from speechzoo.encoders import WhisperEncoder, WhisperQueries


@pytest.fixture
def encoder() -> Frames:
    torch.manual_seed(0)
    return Frames()


def test_states_come_back(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    assert cache.missing([*wavs, *wavs]) == sorted(wavs)
    cache.build(wavs, encoder, batch_seconds=3.1, progress=False)
    assert encoder.calls == [2, 1, 1]  # 0.7 + 1.0 s, 1.51 s, 2.3 s: padded sound stays below 3.1 s
    assert cache.missing(wavs) == []
    for path in wavs:
        audio = read_audio(path)
        alone, lens = encoder(audio[None], torch.tensor([len(audio)]))
        states = cache.get(path)
        assert states.dtype == torch.float32 and states.shape == (lens[0], 8)
        torch.testing.assert_close(states, alone[0].detach(), atol=1e-3, rtol=1e-3)
    assert not list(tmp_path.rglob("*.safetensors.*"))  # no half-written files


def test_another_encoder_or_a_changed_file_finds_nothing(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    sound = tmp_path / "sound.wav"
    shutil.copy(wavs[0], sound)
    cache = FeatureCache(tmp_path / "cache", encoder.fingerprint)
    cache.build([sound], encoder, progress=False)
    other = Frames(scale=2.0)
    assert FeatureCache(tmp_path / "cache", other.fingerprint).missing([sound]) == [sound]
    with pytest.raises(ValueError, match="another encoder"):
        cache.build([sound], other)
    os.utime(sound, ns=(1, 1))
    assert cache.missing([sound]) == [sound]
    with pytest.raises(FileNotFoundError, match="sound.wav: no cached features"):
        cache.get(sound)
    with pytest.raises(FileNotFoundError, match="gone.wav: no such audio file"):
        cache.get(tmp_path / "gone.wav")


def test_damaged_states(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    cache.build(wavs[:1], encoder, progress=False)
    cache.file(wavs[0]).write_bytes(b"half")
    with pytest.raises(ValueError, match="0.wav: its cached features are damaged; delete"):
        cache.get(wavs[0])


def test_ranks_share_the_work_and_make_equal_passes(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    passes = []
    for rank in range(3):
        encoder.calls.clear()
        cache.build(wavs, encoder, batch_seconds=0.1, progress=False, rank=rank, world_size=3)
        passes.append(len(encoder.calls))
    assert passes == [2, 2, 2]  # four clips, each alone
    assert cache.missing(wavs) == []
    torch.testing.assert_close(cache.get(wavs[3]), encode([wavs[3]], encoder)[0], atol=1e-3, rtol=1e-3)


def test_states_that_do_not_fit_half_precision(wavs: list[Path], tmp_path: Path) -> None:
    encoder = Frames(scale=1e6)
    with pytest.raises(ValueError, match="0.wav: encoder states do not fit half precision"):
        FeatureCache(tmp_path, encoder.fingerprint).build(wavs[:1], encoder, progress=False)


def test_too_little_room(wavs: list[Path], tmp_path: Path, encoder: Frames, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="4 clips need"):
        FeatureCache(tmp_path, encoder.fingerprint).build(wavs, encoder)


def test_a_flipped_bit_in_cached_states_is_found(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    cache.build(wavs[:1], encoder, progress=False)
    file, states = cache.file(wavs[0]), cache.get(wavs[0])
    content = bytearray(file.read_bytes())
    content[-17] ^= 8
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"0.wav: its cached features are damaged; delete \S+ and start again"):
        cache.get(wavs[0])
    file.unlink()
    cache.build(cache.missing(wavs[:1]), encoder, progress=False)
    assert cache.get(wavs[0]).equal(states)


class Slow(Frames):
    """Gives another process time to do the same work."""

    def forward(self, audio, lens):
        time.sleep(0.05)
        return super().forward(audio, lens)


def compute(folder: Path, wavs: list[Path], kill_at: int | None) -> None:
    torch.manual_seed(0)
    replace, count = os.replace, itertools.count()

    def dies(one, other) -> None:
        if next(count) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)  # the entry is written, but has not its name yet
        replace(one, other)

    os.replace = dies
    encoder = Slow()
    cache = FeatureCache(folder, encoder.fingerprint)
    for _ in range(5):
        cache.build(wavs, encoder, batch_seconds=0.1, progress=False)


def test_processes_that_compute_one_cache_at_once_do_no_damage(wavs: list[Path], tmp_path: Path, encoder) -> None:
    """One of the three is killed half way; its half file is gone after the next build."""
    context = multiprocessing.get_context("fork")
    some = [context.Process(target=compute, args=(tmp_path, wavs, kill_at)) for kill_at in (None, None, 2)]
    for process in some:
        process.start()
    for process in some:
        process.join()
    assert [process.exitcode for process in some] == [0, 0, -signal.SIGKILL]
    assert len(list(tmp_path.rglob(".*.part"))) == 1
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    assert cache.missing(wavs) == []  # a half file is not taken for an entry
    cache.build(wavs, encoder, progress=False)
    assert sorted(tmp_path.rglob("*.*")) == sorted(cache.file(path) for path in wavs)
    for path in wavs:
        torch.testing.assert_close(cache.get(path), encode([path], encoder)[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("bf16", [False, True])
def test_cached_queries_are_those_of_training(wavs: list[Path], tmp_path: Path, tiny_whisper_pt: Path, bf16) -> None:
    """Whatever shares a pass with a clip: LLaSM's 64 states, as the encoder gives them for the clip alone."""
    context = partial(torch.autocast, "cpu", torch.bfloat16, enabled=bf16)
    encoder = WhisperQueries(str(tiny_whisper_pt), num_queries=7, start_token=3)
    cache = FeatureCache(tmp_path, encoder.fingerprint)
    cache.build(wavs, encoder, progress=False, context=context)
    for path in wavs:
        audio = read_audio(path)
        with torch.no_grad(), context():
            alone = encoder(audio[None], torch.tensor([len(audio)]))[0]
        assert alone.shape == (1, 7, 32) and (alone.dtype == torch.bfloat16) == bf16
        torch.testing.assert_close(cache.get(path), alone[0].float(), atol=4e-2 if bf16 else 2e-3, rtol=0)


def test_states_of_another_precision_are_others(wavs: list[Path], tmp_path: Path, encoder: Frames) -> None:
    FeatureCache(tmp_path, encoder.fingerprint).build(wavs, encoder, progress=False)
    assert FeatureCache(tmp_path, encoder.fingerprint, "32-true").missing(wavs) == []
    assert FeatureCache(tmp_path, encoder.fingerprint, "bf16-mixed").missing(wavs) == sorted(wavs)


def test_padding_to_a_window_counts_and_is_told(wavs, tmp_path, tiny_whisper_pt, monkeypatch) -> None:
    """Four short clips, 30 s each to the encoder: two a pass, not all at once; before it, what and for how long."""
    from speechzoo.data import features

    said: list[str] = []
    monkeypatch.setattr(features, "rank_zero_info", said.append)
    for window, passes in (("padded", 2), ("trimmed", 1)):
        encoder = WhisperEncoder(str(tiny_whisper_pt), window=window)
        sizes: list[int] = []
        encoder.register_forward_pre_hook(lambda module, args, sizes=sizes: sizes.append(len(args[0])))
        FeatureCache(tmp_path, encoder.fingerprint).build(wavs, encoder, batch_seconds=60.0)
        assert len(sizes) == passes and sum(sizes) == 4
    assert len(said) == 2 and "4 clips (2 minutes of sound" in said[0] and "about 1 min" in said[0]
