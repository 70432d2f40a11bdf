"""Every kind of bad record is found, named with file, line and id, and said what to do about."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from speechzoo.data import ManifestError, read_manifest

SPOKEN = {"role": "user", "content": [{"type": "audio", "path": "good.wav"}]}
ASKED = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "Paris."}


def noise(seconds: float, level: float = 0.1) -> np.ndarray:
    return np.random.default_rng(0).normal(0, level, int(seconds * 16_000)).clip(-1, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "good.wav", noise(1.0), 16_000)
    return tmp_path


def write(folder: Path, *records: dict | str, name: str = "data.jsonl") -> Path:
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def problems(folder: Path, *records: dict | str, **options) -> list:
    with pytest.raises(ManifestError) as caught:
        read_manifest(write(folder, *records), **options)
    return caught.value.problems


def only(folder: Path, record: dict | str, **options):
    """The one problem of one bad record after a good one."""
    (problem,) = problems(folder, {"messages": [ASKED, ANSWER]}, record, **options)
    assert (problem.file, problem.line) == (folder / "data.jsonl", 2)
    assert problem.hint
    return problem


def test_good_records(manifest: Path, wavs: list[Path]) -> None:
    records = read_manifest(manifest, num_units=10, audio_positions=lambda n: n // 320 // 5)
    assert [record.id for record in records] == ["paris", "sum", "hello", "turns", "text", "mixed"]
    assert records[3].clips == [wavs[3], wavs[0]]
    assert records[3].clip_samples == [24160, 16000]  # 1.51 s and 1 s, brought to 16 kHz
    assert records[4].clip_samples == []
    assert records[5].line == 6


def test_ids_default_to_file_and_line(folder: Path) -> None:
    (record,) = read_manifest(write(folder, "", {"messages": [ASKED, ANSWER]}))
    assert record.id == "data:2"


@pytest.mark.parametrize(
    ("record", "message", "hint"),
    [
        ("{'messages': 3}", "not JSON", "one JSON object per line"),
        ("[1]", "not a JSON object", "messages"),
        ({"messages": []}, "no messages", "messages"),
        ({"messages": [ASKED, ANSWER], "id": [1]}, "id is [1]", "text"),
        ({"messages": ["hello", ANSWER]}, "message 1 is not an object", "role"),
        ({"messages": [{"content": "x"}, ANSWER]}, "message 1 has no role", "system, user, assistant"),
        ({"messages": [{"role": "asistant", "content": "x"}]}, "unknown role 'asistant'", "'assistant'"),
        ({"messages": [{**ASKED, "contents": 1}, ANSWER]}, "unknown key 'contents'", "'content'"),
        ({"messages": [{**ASKED, "units": [1]}, ANSWER]}, "message 1 (user) has the unknown key 'units'", "role"),
        ({"messages": [ASKED, {**ANSWER, "unit": [1]}]}, "unknown key 'unit'", "'units'"),
        ({"messages": [{"role": "user"}, ANSWER]}, "message 1 (user) has no content", "text"),
        ({"messages": [{"role": "user", "content": [{"type": "adio", "path": "x"}]}, ANSWER]}, "'adio'", "'audio'"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}, ANSWER]}, "without path", "'path'"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 3}]}, ANSWER]}, "without text", "'text'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "audio", "path": "good.wav", "pth": 1}]}, ANSWER]},
            "unknown key 'pth'",
            "'path'",
        ),
        ({"messages": [ASKED, {"role": "assistant", "content": " "}]}, "empty answer", "fill it in"),
        ({"messages": [{"role": "user", "content": ""}, ANSWER]}, "empty content", "fill it in"),
        ({"messages": [ASKED, {**SPOKEN, "role": "assistant"}]}, "assistant cannot hold audio", '"audio"'),
        ({"messages": [{**SPOKEN, "role": "system"}, ASKED, ANSWER]}, "system cannot hold audio", "text"),
        ({"messages": [ANSWER, ASKED]}, "message 1 is from the assistant where the user is due", "turns"),
        ({"messages": [ASKED, ASKED, ANSWER]}, "message 2 is from the user where the assistant is due", "turns"),
        ({"messages": [ASKED, ANSWER, {"role": "system", "content": "x"}]}, "message 3 is from the system", "first"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no user message", "add"),
        ({"messages": [ASKED]}, "does not end with an answer", "add"),
        ({"messages": [ASKED, {**ANSWER, "units": "1 2"}]}, "not a list of whole numbers", "[3, 1, 4]"),
        ({"messages": [ASKED, {**ANSWER, "units": [1, True]}]}, "not a list of whole numbers", "[3, 1, 4]"),
        ({"messages": [ASKED, {**ANSWER, "units": []}]}, "has no units", "leave"),
        ({"messages": [ASKED, {**ANSWER, "units": [1, -1]}]}, "negative unit -1", "from 0"),
        ({"messages": [ASKED, {**ANSWER, "units": [4, 7, 7]}]}, "equal neighbours", "groupby"),
        ({"messages": [ASKED, {**ANSWER, "units": [4, 10]}]}, "unit 10, the model knows 0 to 9", "k-means"),
        ({"messages": [ASKED, {**ANSWER, "audio": 3}]}, "not a path", "relative"),
        ({"messages": [ASKED, {**ANSWER, "audio": "no.wav"}]}, "no such audio file", "relative"),
    ],
)
def test_bad_form(folder: Path, record: dict | str, message: str, hint: str) -> None:
    problem = only(folder, record, num_units=10)
    assert message in problem.message
    assert hint in problem.hint


@pytest.mark.parametrize(
    ("name", "content", "message", "hint"),
    [
        ("missing.wav", None, "no such audio file", "relative"),
        ("empty.wav", b"", "cannot be decoded", "convert"),
        ("header.wav", noise(0.0), "holds no samples", "convert"),
        ("text.wav", b"this is not sound", "cannot be decoded", "convert"),
        ("silent.wav", noise(1.0, 1e-4 / 4.5), "silent", "remove"),
        ("long.wav", noise(40.0), "40.0 s is longer than 30 s", "split"),
        ("short.wav", noise(0.015), "15 ms is too short", "remove"),
    ],
)
def test_bad_audio(folder: Path, name: str, content: bytes | np.ndarray | None, message: str, hint: str) -> None:
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    elif content is not None:
        soundfile.write(folder / name, content, 16_000, subtype="FLOAT")
    messages = [{"role": "user", "content": [{"type": "audio", "path": name}]}, ANSWER]
    problem = only(folder, {"id": "q7", "messages": messages}, audio_positions=lambda n: n // 320)
    assert message in problem.message and name in problem.message
    assert hint in problem.hint
    assert problem.id == "q7"


def test_limit_of_length_is_an_argument(folder: Path) -> None:
    assert "1.0 s is longer than 0.5 s" in only(folder, {"messages": [SPOKEN, ANSWER]}, max_seconds=0.5).message


def test_spoken_answers_may_be_long(folder: Path) -> None:
    soundfile.write(folder / "long.wav", noise(40.0), 16_000)
    (record,) = read_manifest(write(folder, {"messages": [SPOKEN, {**ANSWER, "audio": "long.wav"}]}))
    assert record.clip_samples == [16000]
    assert record.messages[1]["audio"] == str(folder / "long.wav")


def test_duplicate_ids_across_files(folder: Path) -> None:
    record = {"id": "a", "messages": [ASKED, ANSWER]}
    one, two = write(folder, record, name="one.jsonl"), write(folder, record, name="two.jsonl")
    with pytest.raises(ManifestError, match=r"two.jsonl:1 \(a\): id 'a' is taken by .*one.jsonl:1"):
        read_manifest([one, two])


def test_all_problems_of_all_records_together(folder: Path) -> None:
    bad = {"messages": [ASKED, {**ANSWER, "content": "", "units": [1, 1]}]}
    found = problems(folder, *[bad] * 15, {"messages": [SPOKEN, ANSWER]}, "oops")
    assert [problem.line for problem in found] == [line for line in range(1, 16) for _ in range(2)] + [17]
    message = str(ManifestError(found))
    assert message.startswith("31 problems in 16 records")
    assert message.count("->") == 20 and "... and 11 more" in message
    assert f"{folder / 'data.jsonl'}:1 (data:1): message 2 (assistant) has an empty answer -> " in message


def test_skip_warns_and_lists(folder: Path) -> None:
    file = write(folder, {"messages": [ASKED, ANSWER]}, "oops", {"messages": [SPOKEN, ANSWER]})
    report = folder / "out" / "bad_records.jsonl"
    with pytest.warns(UserWarning, match=r"1 bad records are left out.*data.jsonl:2.*bad_records.jsonl"):
        records = read_manifest(file, on_bad="skip", report=report)
    assert [record.line for record in records] == [1, 3]
    (row,) = [json.loads(line) for line in report.read_text().splitlines()]
    assert row["line"] == 2 and row["file"] == str(file) and "not JSON" in row["message"]


def test_nothing_left(folder: Path) -> None:
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="no record is left.*not JSON"):
        read_manifest(write(folder, "oops"), on_bad="skip")
    with pytest.raises(ValueError, match="holds no records"):
        read_manifest(write(folder, ""))


def test_missing_manifest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no.jsonl: no such manifest"):
        read_manifest(tmp_path / "no.jsonl")


def test_questions_need_no_answer(folder: Path) -> None:
    (record,) = read_manifest(write(folder, {"messages": [SPOKEN]}), answer=False)
    assert record.clip_samples == [16000]
