"""Stages: shards, what is done again and what is not, half lines, other settings, full disks."""

from __future__ import annotations

import json
import resource
import signal
from itertools import accumulate
from pathlib import Path

import pytest

from speechzoo.corpora.stage import BROKEN, DONE, PATIENCE, RECORDS, Broken, Item, Shard, Stage, each, in_order
from speechzoo.system.files import DiskFullError, read_jsonl, sha256, write_jsonl


def items(count: int, **broken: Broken) -> list[Item]:
    return [Item(n, f"r{n}", broken.get(f"r{n}", {"text": f"t{n}"})) for n in range(count)]


def double(value: dict) -> dict:
    return {"twice": value["text"] * 2}


@pytest.mark.parametrize("text", ["4/4", "1", "-1/2", "a/b", "0/0", "1/"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="--shard"):
        Shard.read(text)


def test_shards_together_hold_every_record_once_and_in_order(tmp_path):
    for index in range(3):
        Stage(tmp_path, Shard(index, 3), {}).run(items(10), each(double, threads=4))
    files = [tmp_path / str(Shard(index, 3)) / RECORDS for index in range(3)]
    lines = list(in_order(files))
    assert [line["number"] for line in lines] == list(range(10))
    assert {**lines[7], "input": ""} == {"number": 7, "id": "r7", "value": {"twice": "t7t7"}, "input": ""}
    told = json.loads((files[1].parent / DONE).read_text())
    assert (told["records"], told["broken"], told["sha256"]) == (3, {}, sha256(files[1]))


def test_only_what_is_missing_is_done_and_the_broken_are_tried_again(tmp_path):
    asked = []

    def work(value):
        asked.append(value["id"])
        if value["id"] == "r1" and len(asked) < 4:
            raise Broken("endpoint", "status 500", transient=True)
        return {"said": value["text"]}

    stage = Stage(tmp_path, Shard(), {"a": 1})
    unreadable = {"r3": Broken("not JSON", "line 4")}
    assert stage.run(items(4, **unreadable), each(work)) == {"": 2, "endpoint": 1, "not JSON": 1}
    assert [(row["id"], row["reason"], row["detail"]) for row in read_jsonl(stage.folder / BROKEN)] == [
        ("r3", "not JSON", "line 4"),
        ("r1", "endpoint", "status 500"),
    ]
    assert stage.run(items(5, **unreadable), each(work)) == {"": 4, "not JSON": 1}
    assert asked == ["r0", "r1", "r2", "r1", "r4"]
    assert [item.id for item in stage.items()] == ["r0", "r1", "r2", "r4"]


def test_half_a_line_is_cut_off_and_done_again(tmp_path):
    stage = Stage(tmp_path, Shard(), {})
    stage.run(items(3), each(double))
    whole = (stage.folder / RECORDS).read_bytes()
    (stage.folder / RECORDS).write_bytes(whole[:-9])
    stage.run(items(3), each(double))
    assert (stage.folder / RECORDS).read_bytes() == whole


def test_an_id_that_comes_twice_is_named(tmp_path):
    twice = [*items(2), Item(2, "r0", {"text": "x"})]
    stage = Stage(tmp_path, Shard(), {})
    for _ in range(2):
        assert stage.run(twice, each(double)) == {"": 2, "an id that another record has": 1}
    parts = [Stage(tmp_path / "parts", Shard(index, 3), {}).run(twice, each(double)) for index in range(3)]
    assert [counts["an id that another record has"] for counts in parts] == [0, 0, 1]


def test_other_settings_are_refused(tmp_path):
    Stage(tmp_path, Shard(), {"seed": 0, "voices": ("a",)}).run(items(1), each(double))
    Stage(tmp_path, Shard(), {"seed": 0, "voices": ["a"]}).run(items(1), each(double))
    with pytest.raises(ValueError, match="seed: 0 there, 1 asked"):
        Stage(tmp_path, Shard(), {"seed": 1, "voices": ["a"]}).run(items(1), each(double))


def test_an_unfinished_stage_gives_no_input(tmp_path):
    with pytest.raises(FileNotFoundError, match="not finished"):
        list(Stage(tmp_path, Shard(), {}).items())


def test_work_stops_when_nothing_outside_answers(tmp_path):
    asked = []

    def down(value):
        asked.append(value)
        raise Broken("endpoint", "no connection", transient=True)

    stage = Stage(tmp_path, Shard(), {})
    with pytest.raises(ValueError, match=f"{PATIENCE} records in a row failed, the last with endpoint: no connection"):
        stage.run(items(500), each(down))
    assert len(asked) == PATIENCE == len(read_jsonl(stage.folder / BROKEN))
    assert not (stage.folder / DONE).exists()
    stage.run(items(500), each(double))
    assert len(list(stage.items())) == 500


def test_a_full_disk_is_told_and_what_was_done_is_kept(tmp_path: Path):
    stage = Stage(tmp_path, Shard(), {})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(DiskFullError, match=r"records.jsonl: File too large"):
            stage.run(items(100), each(double))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    asked = []
    kept = len(stage.finished())
    stage.run(items(100), each(lambda value: asked.append(value) or double(value)))
    ends = list(accumulate(map(len, (stage.folder / RECORDS).read_bytes().splitlines(keepends=True))))
    assert kept == sum(end <= 1000 for end in ends) > 10
    assert len(asked) == 100 - kept
    assert [item.number for item in stage.items()] == list(range(100))


@pytest.mark.parametrize("gone", [False, True])
def test_other_input_for_what_is_done_is_refused(tmp_path: Path, gone: bool):
    stage, sound = Stage(tmp_path, Shard(), {}), {"bytes": b"a", "path": None}
    given = [Item(n, f"r{n}", {"text": f"t{n}", "audio": sound, "read": print}) for n in range(3)]
    stage.run(given, each(double))
    assert stage.run([*given, Item(3, "r3", {"text": "t3"})], each(double)) == {"": 4}
    others = [{"text": "other", "audio": sound}, {"text": "t1", "audio": {**sound, "bytes": b"b"}}]
    for other in others if not gone else [None]:
        changed = [given[0], *([Item(1, "r1", other)] if other else []), given[2], Item(3, "r3", {"text": "t3"})]
        with pytest.raises(ValueError, match="r1 stands otherwise in the input, or not any more, .* delete .*00000-of"):
            stage.run(changed, each(double))
    lines = [line | {"input": None} for line in read_jsonl(stage.folder / RECORDS)]
    write_jsonl(stage.folder / RECORDS, lines)  # of an earlier version
    stage.run([Item(n, f"r{n}", {"text": "other"}) for n in range(4)], each(double))


def test_a_damaged_line_names_its_file(tmp_path: Path):
    stage = Stage(tmp_path, Shard(), {})
    stage.run(items(3), each(double))
    file = stage.folder / RECORDS
    file.write_bytes(file.read_bytes()[:20] + bytes(9) + file.read_bytes()[29:])
    for read in (lambda: stage.run(items(3), each(double)), lambda: list(in_order([file]))):
        with pytest.raises(ValueError, match=r"records.jsonl: damaged .* delete"):
            read()
