"""Rows of tables in the chat layout of Hugging Face, as records of a manifest.

Columns: `messages` (a list of structs, or its JSON text), `id` (may be left out), and `audio` or `audios` (one sound or
a list) for audio parts that bring none of their own: they take these in order. A sound is a path, or the struct
`{bytes, path}` that `datasets.Audio` writes, which may also stand in a part (`audio`) and in an answer (`audio`). Other
columns are not read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speechzoo.data.sources.base import Row, Where, arrange, beside, parse, sounds_of

COLUMNS = ("id", "messages", "audio", "audios")


def table_row(
    number: int,
    where: Where,
    shard: str,
    folder: Path,
    values: dict[str, Any],
    whole: bool,
    sounds: list[Any] | None = None,
) -> Row:
    """A record of a row.

    Args:
        shard: what references to its sound begin with.
        folder: what paths are relative to.
        values: the row by column.
        whole: no bytes of sound are left out of it: what has none there is a file, which may change.
        sounds: takes what stands for each sound, in the order of their references; None where they are not wanted.
    """
    stem = Path(shard).stem if not shard.startswith("hf:") else Path(shard.removeprefix("hf:")).name
    row = Row(number, where, f"{stem}:{number}")
    messages = values.get("messages")
    if isinstance(messages, str):
        try:
            messages = parse(messages)
        except ValueError as error:
            row.error = f"its messages are not JSON ({error})", "write a list of messages, as structs or as JSON text"
            return row

    def place(given: Any, index: int) -> Any:
        if sounds is not None:
            sounds.append(given)
        if isinstance(given, dict):
            if not whole or given.get("bytes") is not None or not isinstance(given.get("path"), str):
                return f"{shard}::{number}/{index}"
            given = given["path"]
        return beside(str(folder), given)

    try:
        value = {"messages": _plain(messages)}
    except RecursionError:
        row.error = "its messages are nested too deep", "write a list of messages, as structs or as JSON text"
        return row
    if values.get("id") is not None:
        value["id"] = values["id"]
    arrange(row, value, sounds_of(values), place)
    return row


def _plain(value: Any) -> Any:
    """Without the keys that are null because another row has them."""
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    kept = {key: entry if key in ("audio", "path") else _plain(entry) for key, entry in value.items()}
    return {key: entry for key, entry in kept.items() if entry is not None}


def sound_of(given: Any, folder: Path, shard: str, place: str) -> bytes | Path:
    """The bytes of a sound file, or where that is.

    Raises:
        ValueError: if there is neither.
    """
    if isinstance(given, dict):
        content: bytes | None = given.get("bytes")
        if content is not None:
            return content
        given = given.get("path")
    if not isinstance(given, str) or not given:
        raise ValueError(f"{shard}::{place}: the sound has neither bytes nor a path")
    return folder / given


def number_of(place: str) -> tuple[int, int]:
    """Record and number of the sound in it, of a reference."""
    number, _, index = place.partition("/")
    return int(number), int(index)
