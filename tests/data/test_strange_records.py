"""Records that nobody expected: each is used whole, or is a bad record with file and line; nothing else happens."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from shards import add

from speechzoo.data import ConversationDataset, ManifestError, read_manifest
from speechzoo.system.files import read_jsonl, write_jsonl
from speechzoo.text import ChatPrompt

ASKED = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Paris."}
GOOD = {"messages": [ASKED, ANSWER]}


def write(path: Path, *records: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ({"id": "", **GOOD}, "id is ''"),
        ({"messages": [{**ASKED, "content": [{"type": "audio", "path": "a\0b.wav"}]}, ANSWER]}, "no such audio file"),
        ({"id": "  ", **GOOD}, "id is '  '"),
        ({"id": True, **GOOD}, "id is True"),
        ({"id": None, **GOOD}, "id is None"),
        ({"id": "\ud83d", **GOOD}, r"id is '\ud83d', which holds half of a character"),
        ({"messages": [ASKED, {**ANSWER, "content": "\ud83d"}]}, r"message 2 holds '\ud83d'"),
        (
            {"messages": [{**ASKED, "content": [{"type": "text", "text": "a\udc00"}]}, ANSWER]},
            r"message 1 holds '\udc00'",
        ),
        ({"messages": [{**ASKED, "content": [{"type": ["audio"], "path": "x"}]}, ANSWER]}, "unknown type ['audio']"),
        ({"messages": [{**ASKED, "content": [{"type": {}, "path": "x"}]}, ANSWER]}, "unknown type {}"),
        ({"messages": [{"role": ["user"], "content": "x"}, ANSWER]}, "unknown role ['user']"),
        ({"messages": [{**ASKED, "content": 5}, ANSWER]}, "has no content"),
        ({"messages": "hello"}, "no messages"),
        ({"messages": [ASKED, {**ANSWER, "units": [99999999999]}]}, "has unit 99999999999, the model knows 0 to 9"),
        ({"messages": [ASKED, {**ANSWER, "units": [2**31]}]}, "has unit 2147483648, the model knows 0 to 9"),
        ({"messages": [ASKED, {**ANSWER, "units": [10**30, 1]}]}, f"has unit {10**30}, the model knows 0 to 9"),
        ({"messages": [ASKED, {**ANSWER, "units": [True]}]}, "not a list of whole numbers"),
        ({"messages": [ASKED, {**ANSWER, "units": [1.0]}]}, "not a list of whole numbers"),
        ({"messages": [ASKED, {**ANSWER, "units": [-(10**30)]}]}, "negative unit"),
        ("[" * 200_000, "not JSON (brackets are nested too deep)"),
        ('{"a":' * 100_000, "not JSON (brackets are nested too deep)"),
        ('{"messages": ' + "9" * 5000 + "}", "not JSON"),
        ('{"messages": NaN}', "no messages"),
        ("[1]", "not a JSON object"),
    ],
)
def test_a_bad_record_is_named_and_can_be_left_out(tmp_path: Path, bad: object, said: str) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, bad, GOOD)
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, num_units=10)
    (problem,) = caught.value.problems
    assert said in problem.message and (problem.file, problem.line) == (path, 2)
    str(problem).encode()  # it can be printed
    if "the model knows" in said:  # a model without units refuses what no model can know
        with pytest.raises(ManifestError, match="a model of K units knows 0 to K-1"):
            read_manifest(path)
    report = tmp_path / "report.jsonl"
    with pytest.warns(UserWarning, match="1 bad records are left out"):
        left = read_manifest(path, num_units=10, on_bad="skip", report=report)
    assert [record.id for record in left] == ["data:1", "data:3"]
    assert [row["line"] for row in read_jsonl(report)] == [2]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["user", "audio"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "messages", "role", "content", "type", "path", "text", "units", "audio"]), inner
        )
    ),
    max_leaves=12,
)
message = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", "system"]) | values, "content": values})
record = st.fixed_dictionaries(
    {"messages": st.lists(message, max_size=3) | values}, optional={"id": values, "audio": values}
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(record, values))
def test_any_json_is_a_record_or_a_bad_one(tmp_path: Path, value: object) -> None:
    path = write(tmp_path / "data.jsonl", GOOD, json.dumps(value))
    try:
        assert len(read_manifest(path, num_units=10)) in (1, 2)
    except ManifestError as error:
        assert {problem.line for problem in error.problems} == {2}


def test_files_of_one_name_are_told_apart(tmp_path: Path, tiny_llm_dir: Path) -> None:
    paths = [write(tmp_path / folder / "train.jsonl", GOOD, GOOD) for folder in ("A", "B", "C/B")]
    records = read_manifest(paths)
    ids = [record.id for record in records]
    assert len(set(ids)) == 6 and ids[0] == "A/train:1" and ids[4] == "C/B/train:1"
    assert [record.file for record in records][::2] == paths
    assert [r.id for r in read_manifest(paths, on_bad="skip")] == ids and [r.id for r in records[4:]] == ids[4:]
    dataset = ConversationDataset(records, ChatPrompt(str(tiny_llm_dir)))
    assert [dataset[number].id for number in range(6)] == ids
    assert [record.id for record in read_manifest(paths[:1])] == ["train:1", "train:2"]
    mixed = write(tmp_path / "D" / "train.jsonl", {"id": "train:1", **GOOD}, {"id": "x", **GOOD})
    assert [r.id for r in read_manifest([paths[0], mixed])] == ["A/train:1", "train:2", "train:1", "x"]
    same = write(tmp_path / "E" / "other.jsonl", {"id": "x", **GOOD})
    with pytest.raises(ManifestError, match="id 'x' is taken by"):
        read_manifest([mixed, same])
    with pytest.raises(ValueError, match="train.jsonl is named twice"):
        read_manifest([paths[0], paths[0]])


def test_shards_that_number_alike_are_told_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for key in ("000001", "000002"):
                add(tar, f"{key}.json", json.dumps(GOOD).encode())
    assert [r.id for r in read_manifest([tmp_path / "a.tar", tmp_path / "b.tar"])] == [
        "a/000001", "a/000002", "b/000001", "b/000002",
    ]  # fmt: skip


def test_further_keys_are_named_once(tmp_path: Path, caplog) -> None:
    rows = [{**GOOD, "source": "web", "duration": 3}, {**GOOD, "source": "x", "message": 1, "half\ud83d": 0}]
    path = write(tmp_path / "data.jsonl", *rows)
    for _ in range(2):  # the second time from the index
        caplog.clear()
        with caplog.at_level("INFO"):
            assert len(read_manifest(path, memory=tmp_path / "memory.json")) == 2
        (told,) = [entry.message for entry in caplog.records if "not read" in entry.message]
        assert "'source', 'duration', 'message' (did you mean 'messages'?)" in told and r"'half\ud83d'" in told
        told.encode()


def test_sound_may_stand_where_tables_have_it(tmp_path: Path) -> None:
    for number in (1, 2):
        soundfile.write(tmp_path / f"{number}.wav", np.full(16_000 * number, 0.1), 16_000)
    part = {"type": "audio"}

    def user(*parts: dict) -> dict:
        return {"role": "user", "content": list(parts)}

    rows = [
        {"messages": [user({**part, "audio": "1.wav"}), ANSWER]},
        {"messages": [user(part), ANSWER], "audio": "1.wav"},
        {"messages": [user(part, part), ANSWER], "audios": ["1.wav", {"path": "2.wav", "bytes": None}]},
        {"messages": [user({**part, "path": None}, {**part, "path": "1.wav"}), ANSWER], "audio": {"path": "2.wav"}},
    ]
    records = read_manifest(write(tmp_path / "data.jsonl", *rows))
    assert [record.clip_samples for record in records] == [[16_000], [16_000], [16_000, 32_000], [32_000, 16_000]]
    assert records[2].clips == [tmp_path / "1.wav", tmp_path / "2.wav"]


def test_sound_that_no_turn_takes_is_told(tmp_path: Path) -> None:
    """Text alone would be learnt, though the record has sound."""
    soundfile.write(tmp_path / "1.wav", np.full(16_000, 0.1), 16_000)
    question = {"role": "user", "content": "<audio> What is that?"}
    good = {"messages": [question, ANSWER], "audios": []}
    spoken = {"messages": [question, {**ANSWER, "audio": "1.wav"}], "audio": "1.wav"}
    for silent in ({"audio": "1.wav"}, {"audios": ["1.wav"]}, {"audio": {"path": "1.wav", "bytes": None}}):
        path = write(tmp_path / "data.jsonl", good, spoken, {"messages": [question, ANSWER], **silent})
        with pytest.raises(ManifestError, match=r"data.jsonl:3 .*: sound is beside its messages") as caught:
            read_manifest(path)
        assert len(caught.value.problems) == 1
        with pytest.warns(UserWarning, match="1 bad records are left out"):
            assert len(read_manifest(path, on_bad="skip")) == 2


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.text(st.characters(), max_size=12) | st.text("\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e\r\n\ud83d", max_size=6)
    )
)
def test_lines_come_back_as_they_were_written(tmp_path: Path, texts: list[str]) -> None:
    write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    assert read_jsonl(tmp_path / "rows.jsonl") == [{"text": text} for text in texts]
    whole = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert len(whole.splitlines()) == len(texts)  # for readers that split at more than \n
