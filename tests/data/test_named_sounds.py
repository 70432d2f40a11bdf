"""Sound that is named in unusual ways: each clip is what its record says, and what is known of it does not go stale."""

from __future__ import annotations

import errno
import json
import os
import tarfile
from pathlib import Path

import pytest
import soundfile
from shards import add

from speechzoo.data import FeatureCache, audio_check, read_manifest
from speechzoo.data.audio_check import check_audio
from speechzoo.data.features import _samples
from speechzoo.data.manifest import clip_paths, scan

HEARD = {"role": "user", "content": [{"type": "audio"}]}
SAID = {"role": "assistant", "content": "x"}


def shard(path: Path, record: dict, sound: Path, key: str = "k") -> Path:
    with tarfile.open(path, "w") as tar:
        add(tar, f"{key}.json", json.dumps(record).encode())
        add(tar, f"{key}.wav", sound.read_bytes())
    return path


def test_a_sound_of_a_tar_file_is_taken_once(tmp_path: Path, wavs: list[Path]) -> None:
    """Neither for a second part without a path nor for an answer whose audio is null."""
    twice = {**HEARD, "content": HEARD["content"] * 2}
    _, problems = scan(shard(tmp_path / "parts.tar", {"messages": [twice, SAID]}, wavs[0]))
    assert [problem.message for problem in problems] == ["message 1 has a part of type audio without path"]
    _, problems = scan(shard(tmp_path / "null.tar", {"messages": [HEARD, {**SAID, "audio": None}]}, wavs[0]))
    assert [problem.message for problem in problems] == ["message 2 has an audio that is not a path"]


def test_features_of_a_member_whose_name_a_path_would_write_otherwise(tmp_path: Path, wavs: list[Path]) -> None:
    (record,) = read_manifest(shard(tmp_path / "a.tar", {"messages": [HEARD, SAID]}, wavs[0], key="d//k"))
    (clip,) = clip_paths(record.messages)
    cache = FeatureCache(tmp_path / "cache", "x")
    assert "::d//k.wav@" in clip and cache.missing([clip, clip]) == [clip]


def test_folders_with_brackets_and_files_named_twice(tmp_path: Path, wavs: list[Path]) -> None:
    (folder := tmp_path / "shards [1]").mkdir()
    file = shard(folder / "a.tar", {"messages": [HEARD, SAID]}, wavs[0])
    assert len(read_manifest(folder)) == 1
    (tmp_path / "link.tar").symlink_to(file)
    for other in (folder / ".." / folder.name / "a.tar", tmp_path / "link.tar"):
        with pytest.raises(ValueError, match="is named twice: its records would count double"):
            read_manifest([file, other])


def test_an_index_follows_the_shards_that_its_records_name(tmp_path: Path, wavs: list[Path]) -> None:
    name = tmp_path / "sounds.tar"
    (first,) = read_manifest(shard(name, {"messages": [HEARD, SAID]}, wavs[0]))
    (clip,) = clip_paths(first.messages)
    named = {"role": "user", "content": [{"type": "audio", "path": clip}]}
    (manifest := tmp_path / "m.jsonl").write_text(json.dumps({"messages": [named, SAID]}) + "\n")
    memory = tmp_path / "memory" / "checks.json"
    moved = name.rename(tmp_path / "away.tar")
    _, problems = scan(manifest, memory=memory)
    assert "No such file" in problems[0].message
    moved.rename(name)
    records, problems = scan(manifest, memory=memory)
    assert problems == [] and records[0].clip_samples == first.clip_samples
    content = bytearray(name.read_bytes())
    start, size = map(int, clip.rpartition("@")[2].split("+"))
    content[start + 44 : start + size] = bytes(size - 44)  # silence
    name.write_bytes(content)
    os.utime(name, ns=(1, 1))
    _, problems = scan(manifest, memory=memory)
    assert "silent" in problems[0].message


def test_references_into_hugging_face_sets_stand_in_jsonl(tmp_path: Path, wavs: list[Path]) -> None:
    datasets = pytest.importorskip("datasets")
    row = {"messages": json.dumps([HEARD, SAID]), "audio": {"bytes": wavs[0].read_bytes(), "path": None}}
    datasets.Dataset.from_list([row]).save_to_disk(str(tmp_path / "set"))
    (record,) = read_manifest(f"hf:{tmp_path / 'set'}")
    (manifest := tmp_path / "m.jsonl").write_text(json.dumps({"messages": record.messages}) + "\n")
    (again,) = read_manifest(manifest)
    assert again.messages == record.messages and again.clip_samples == record.clip_samples


def test_a_sound_that_cannot_be_reached_now_is_tried_again(tmp_path: Path, wavs: list[Path], monkeypatch) -> None:
    named = {"role": "user", "content": [{"type": "audio", "path": str(wavs[0])}]}
    (manifest := tmp_path / "m.jsonl").write_text(json.dumps({"messages": [named, SAID]}) + "\n")
    memory = tmp_path / "memory" / "checks.json"

    def unreachable(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patched:
        patched.setattr(audio_check, "read_audio", unreachable)
        _, problems = scan(manifest, memory=memory)
        assert "cannot be read ([Errno 24] Too many open files)" in problems[0].message
    assert scan(manifest, memory=memory)[1] == []


def test_lengths_are_planned_of_files_that_libsndfile_alone_does_not_open(tmp_path: Path, wavs: list[Path]) -> None:
    content, samples = wavs[0].read_bytes(), soundfile.info(wavs[0]).frames
    (tmp_path / "joined.wav").write_bytes(content + content)
    (tmp_path / "piped.wav").write_bytes(content[:4] + bytes(4) + content[8:40] + bytes(4) + content[44:])
    assert [_samples(tmp_path / name) for name in ("joined.wav", "piped.wav")] == [2 * samples, samples]


@pytest.mark.parametrize("content", [b"\xff\xfe{", b"[]", b"{"])
def test_a_damaged_memory_is_made_anew(tmp_path: Path, wavs: list[Path], content: bytes) -> None:
    (memory := tmp_path / "checks.json").write_bytes(content)
    assert check_audio(wavs[:1], memory)[wavs[0]].error is None
    assert len(json.loads(memory.read_text().splitlines()[0])) == 1


def test_what_another_process_found_meanwhile_is_kept(tmp_path: Path, wavs: list[Path], monkeypatch) -> None:
    memory, look = tmp_path / "checks.json", audio_check.inspect_audio

    def slow(path):
        monkeypatch.setattr(audio_check, "inspect_audio", look)
        check_audio(wavs[1:2], memory)  # of the other process
        return look(path)

    monkeypatch.setattr(audio_check, "inspect_audio", slow)
    check_audio(wavs[:1], memory)
    assert len(json.loads(memory.read_text().splitlines()[0])) == 2
