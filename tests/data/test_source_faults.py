"""What is wrong in a source is named, whatever its kind, and the files it names are watched."""

from __future__ import annotations

import json
import os
import tarfile
from functools import partial
from pathlib import Path

import pytest
import shards

from speechzoo.data import (
    ManifestError,
    read_manifest,
)
from speechzoo.data.sources import read_clip, resolve

pytest.importorskip("pyarrow")
pytest.importorskip("datasets")

kinds = pytest.mark.parametrize("kind", sorted(shards.KINDS))


BAD = {
    "role": ({"messages": [{"role": "asistant", "content": "x"}]}, "unknown role 'asistant'"),
    "empty": ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]}, "empty answer"),
    "units": (
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "content": "y", "units": [4, 4]},
            ]
        },
        "equal neighbours",
    ),
}


@kinds
def test_bad_records_are_named_and_skipped(kind, manifest, tmp_path) -> None:
    """The second of three records is bad in turn: in its form or in its sound."""
    good = shards.rows_of(manifest)[:2]
    sounds = {"damaged.wav": b"this is not sound", "empty.wav": b""}
    for name, content in sounds.items():
        (manifest.parent / name).write_bytes(content)
    answer = {"role": "assistant", "content": "x"}
    parts = {name: [{"type": "audio", "path": name}] for name in sounds}
    spoken = {
        name: ({"messages": [{"role": "user", "content": content}, answer]}, "cannot be decoded")
        for name, content in parts.items()
    }
    for number, (name, (row, message)) in enumerate({**BAD, **spoken}.items()):
        rows = [good[0], {**row, "id": name}, good[1]]
        write = partial(shards.write_tars, shards=1) if kind == "tar" else shards.KINDS[kind]
        if kind.startswith("parquet"):
            write = partial(shards.write_parquet, shards=1, text=kind == "parquet-text")
        paths = write(tmp_path / str(number), rows, manifest.parent)
        with pytest.raises(ManifestError) as caught:
            read_manifest(paths)
        (problem,) = caught.value.problems
        assert (problem.file, problem.line, problem.id) == (Path(resolve(paths)[0]), 2, name)
        assert message in problem.message and problem.hint
        report = tmp_path / f"{number}.jsonl"
        with pytest.warns(UserWarning, match="1 bad records are left out"):
            records = read_manifest(paths, on_bad="skip", report=report, memory=tmp_path / "checks.json")
        assert [record.id for record in records] == ["paris", "sum"]
        assert json.loads(report.read_text())["line"] == 2


def test_faults_of_tar_files(tmp_path: Path, manifest: Path) -> None:
    rows = shards.rows_of(manifest)
    pattern = shards.write_tars(tmp_path / "t", rows, manifest.parent, 1)
    file = tmp_path / "t" / "s-000.tar"
    whole = file.read_bytes()

    def only(content: bytes) -> str:
        file.write_bytes(content)
        with pytest.raises(ManifestError) as caught:
            read_manifest(pattern)
        return str(caught.value.problems[-1])

    assert "damaged or cut off" in only(whole[: len(whole) // 2])
    with tarfile.open(file, "w") as tar:
        shards.add(tar, "a.json", json.dumps({"messages": rows[4]["messages"]}).encode())
        shards.add(tar, "b.wav", b"x")
        shards.add(tar, "a.txt", b"x")
    text = only(file.read_bytes())
    assert "the files of a are not neighbours" in text
    with pytest.raises(ManifestError, match="no b.json beside b.wav"):
        read_manifest(pattern)
    with tarfile.open(file, "w:gz") as tar:
        shards.add(tar, "a.json", b"{}")
    assert "compressed" in only(file.read_bytes())


def test_faults_of_tables(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and nothing else")
    with pytest.raises(ManifestError, match="cannot be read as Parquet"):
        read_manifest(tmp_path / "bad.parquet")
    parquet.write_table(pa.table({"message": ["x"]}), tmp_path / "other.parquet")
    with pytest.raises(ManifestError, match="has no column messages .its columns: message"):
        read_manifest(tmp_path / "other.parquet")
    parquet.write_table(pa.table({"messages": ["[oops"]}), tmp_path / "text.parquet")
    with pytest.raises(ManifestError, match=r"text.parquet:1 \(text:1\): its messages are not JSON"):
        read_manifest(tmp_path / "text.parquet")
    with pytest.raises(ManifestError, match="cannot be loaded"):
        read_manifest(f"hf:{tmp_path / 'nowhere'}:train")


def test_sound_of_a_shard_that_no_turn_takes_is_told(tmp_path: Path, wavs: list[Path]) -> None:
    """A struct of nulls is no sound, as some writers store it."""
    import pyarrow as pa
    from pyarrow import parquet

    turns = json.dumps([{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": "y"}])
    sounds = [{"bytes": None, "path": None}, {"bytes": wavs[0].read_bytes(), "path": "a.wav"}]
    parquet.write_table(pa.table({"messages": [turns, turns], "audio": sounds}), tmp_path / "t.parquet")
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        shards.add(tar, "1.json", json.dumps({"messages": json.loads(turns)}).encode())
        shards.add(tar, "2.json", json.dumps({"messages": json.loads(turns)}).encode())
        shards.add(tar, "2.wav", wavs[0].read_bytes())
    for shard in ("t.parquet", "t.tar"):
        with pytest.raises(ManifestError, match=rf"{shard}:2 .*: sound is beside its messages") as caught:
            read_manifest(tmp_path / shard)
        assert len(caught.value.problems) == 1


def test_paths_beside_the_shard(tmp_path: Path, wavs: list[Path]) -> None:
    """Tables may name sound files instead of holding them; those are then looked at as with JSONL."""
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "q.wav").write_bytes(wavs[0].read_bytes())
    messages = json.dumps([{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "x"}])
    table = pa.table({"messages": [messages, messages], "audio": ["q.wav", "no.wav"]})
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ManifestError, match=r"a.parquet:2 .*no.wav: no such|a.parquet:2 .*no such audio file"):
        read_manifest(tmp_path / "a.parquet")
    with pytest.warns(UserWarning):
        (record,) = read_manifest(tmp_path / "a.parquet", on_bad="skip")
    assert record.clip_samples == [16000] and record.clips == [tmp_path / "q.wav"]


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_sounds_that_a_table_names_in_structs_are_watched(kind: str, tmp_path: Path, wavs: list[Path]) -> None:
    """`datasets.Audio` writes `{bytes: null, path: ...}` for a file: it may change, and the shard does not."""
    import datasets
    import pyarrow as pa
    from pyarrow import parquet

    messages = json.dumps([{"role": "user", "content": [{"type": "audio"}]}, {"role": "assistant", "content": "x"}])
    file, memory = tmp_path / "q.wav", tmp_path / "memory" / "checks.json"
    audio = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    rows = [{"messages": messages, "audio": {"bytes": None, "path": str(file)}}]
    table = pa.Table.from_pylist(rows, schema=pa.schema({"messages": pa.string(), "audio": audio}))
    if kind == "parquet":
        parquet.write_table(table, tmp_path / "a.parquet")
        source = str(tmp_path / "a.parquet")
    else:
        datasets.Dataset(table).save_to_disk(str(tmp_path / "arrow"))
        source = f"hf:{tmp_path / 'arrow'}"
    with pytest.raises(ManifestError, match="no such audio file"):
        read_manifest(source, memory=memory)
    for wav, samples in ((wavs[0], 16000), (wavs[1], 36799)):
        file.write_bytes(wav.read_bytes())
        (record,) = read_manifest(source, memory=memory)
        assert record.clip_samples == [samples] and record.clips == [file]
        assert len(read_clip(record.clips[0])) == samples


@pytest.mark.parametrize("kind", ["parquet", "parquet-text", "tar"])
@pytest.mark.parametrize("change", ["text", "cut"])
def test_other_content_under_a_record_that_was_checked_is_told(kind: str, change: str, manifest: Path, tmp_path: Path):
    rows = shards.rows_of(manifest)
    name = shards.KINDS[kind](tmp_path / "a", rows, manifest.parent)
    records = read_manifest(name)
    other = [{**row, "messages": [*row["messages"][:-1], {**row["messages"][-1], "content": "X"}]} for row in rows]
    made = resolve(shards.KINDS[kind](tmp_path / "b", other if change == "text" else rows[-1:], manifest.parent))[0]
    Path(made).replace(resolve(name)[0])  # between two epochs
    with pytest.raises(ValueError, match="is not the record that was checked"):
        list(records)


def test_a_record_changed_behind_its_stamp_is_told(manifest: Path, tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    for wav in manifest.parent.glob("*.wav"):
        (tmp_path / wav.name).symlink_to(wav)
    file.write_bytes(manifest.read_bytes())
    memory, stat = tmp_path / "memory.json", file.stat()
    read_manifest(file, memory=memory)
    file.write_bytes(file.read_bytes().replace(b'"assistant"', b'"assistanX"', 1))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ValueError, match=":1: is not the record that was checked: the file changed; touch it"):
        list(read_manifest(file, memory=memory))
    file.touch()
    with pytest.raises(ManifestError, match="unknown role 'assistanX'"):
        read_manifest(file, memory=memory)
