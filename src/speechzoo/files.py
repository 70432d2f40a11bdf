"""Files that appear whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are and some readers take for the end of a line."""


def write_atomically(path: str | Path, content: bytes | str, sync: bool = False) -> None:
    """Write a file, and its folder if there is none; no other process ever sees half of it.

    Args:
        content: text is written as UTF-8.
        sync: wait until the content is on the disk, so that it outlives a power cut too.

    Raises:
        OSError: if the file cannot be written; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        with part.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_json(path: str | Path, value: Any, sync: bool = False) -> None:
    """Write a value as indented JSON; see `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", sync)


def write_jsonl(path: str | Path, records: Iterable[Any], sync: bool = False) -> None:
    """Write one JSON record a line; see `write_atomically`."""
    write_atomically(path, "".join(json_line(record) for record in records), sync)


def json_line(record: Any) -> str:
    """A record as a line of JSONL, whatever characters it holds: none of them ends the line or cannot be encoded."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a character
        line = json.dumps(record)
    return line.translate(LINE_ENDS) + "\n"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and text of the lines of a JSONL file that are not empty.

    `str.splitlines` would also cut at characters such as U+2028, which JSON allows in a text.

    Raises:
        OSError, UnicodeDecodeError: if it cannot be read.
    """
    with Path(path).open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, line


def read_jsonl(path: str | Path) -> list[Any]:
    """The records of a JSONL file that speechzoo wrote."""
    return [json.loads(line) for _, line in read_lines(path)]
