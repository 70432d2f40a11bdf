"""JSONL files, read by byte offset."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from speechzoo.data.sources.base import Row, Source, Where, arrange, beside, opened, parse, sounds_of


class JsonLines(Source):
    """One record a line; where = (byte offset, bytes)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.file = opened(self, self.path)

    def rows(self) -> Iterator[Row]:
        offset = 0
        with self.path.open("rb") as lines:
            for number, text in enumerate(lines, start=1):
                if text.strip():
                    yield self._row(number, (offset, len(text)), text)
                offset += len(text)

    def read(self, number: int, where: Where) -> Row:
        return self._row(number, where, os.pread(self.file, where[1], where[0]))

    def _row(self, number: int, where: Where, text: bytes) -> Row:
        row = Row(number, where, f"{self.stem}:{number}")
        try:
            value = parse(text)
        except ValueError as error:
            row.error = f"not JSON ({error})", "write one JSON object per line"
            return row
        if not isinstance(value, dict):
            row.error = "not a JSON object", 'write {"messages": [...]} on each line'
            return row
        arrange(row, value, sounds_of(value), lambda sound, _: beside(self.folder, _path(sound)))
        return row


def _path(sound: Any) -> Any:
    """The path of a sound that is given as `datasets.Audio` writes it; anything else as it is."""
    return sound["path"] if isinstance(sound, dict) and isinstance(sound.get("path"), str) else sound
