"""Files appear whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechzoo.files import write_atomically, write_json, write_jsonl


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    write_json(file, {"é": 1}, sync=True)
    assert json.loads(file.read_text(encoding="utf-8")) == {"é": 1} and file.read_bytes().endswith(b"}\n")
    with pytest.raises(TypeError):
        write_atomically(file, 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_jsonl(file, [{"a": 1}, {"b": object()}])
    assert json.loads(file.read_text(encoding="utf-8")) == {"é": 1}
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]  # no half files either
    write_jsonl(file, ({"n": n} for n in range(3)))
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [0, 1, 2]
