"""Files that appear whole or not at all, whatever happens to the process that writes them."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any


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
    write_atomically(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), sync)


def keep_inputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read, by whatever name: links, relative paths, another spelling.

    Raises:
        ValueError: naming the first output that is one of the inputs.
    """
    read = [Path(path).expanduser() for path in inputs]
    for output in (Path(path).expanduser() for path in outputs):
        for path in read:
            if same_file(output, path):
                raise ValueError(
                    f"{output}: is also an input ({path}), which would be overwritten: name another output"
                )


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one file, hard links included; those of files that are not there by their folders."""
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)
