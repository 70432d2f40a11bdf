"""JSONL files, read by byte offset."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

from speechzoo.data.sources.base import Row, Source, Where, beside, opened, put_sound


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
            value = json.loads(text)
        except ValueError as error:
            row.error = f"not JSON ({error})", "write one JSON object per line"
            return row
        if not isinstance(value, dict):
            row.error = "not a JSON object", 'write {"messages": [...]} on each line'
            return row
        row.value = put_sound(value, lambda path, _: beside(self.folder, path))
        return row
