"""Tar shards in the layout of WebDataset: `KEY.json` beside `KEY.wav`, `KEY.flac`, ..., read by byte offset.

A record is the members of one key, which are neighbours. Its JSON is a record of a manifest without paths where the
key has one sound, else with the rest of the member's name: `{"type": "audio", "path": "question.wav"}` for
`KEY.question.wav`.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from typing import Any, BinaryIO

from speechzoo.data.sources.base import Row, Source, Where, arrange, beside, opened, parse, sounds_of

SOUND = ("wav", "flac", "ogg", "opus", "mp3", "aiff", "aif")
NAME = re.compile(r"^(?P<key>(?:.*/)?[^./][^./]*)\.(?P<rest>[^/]+)$")
PLACE = re.compile(r"@(\d+)\+(\d+)$")


class TarShard(Source):
    """Records of an uncompressed tar file; where = (offset of the first member, offset after the last)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.file = opened(self, self.path)

    def rows(self) -> Iterator[Row]:
        number, cut = 0, ""
        seen: set[int] = set()
        members = self._members(0, None)
        try:
            for key, group in groupby(members, key=lambda member: _split(member)[0]):
                number += 1
                found = list(group)
                where = (found[0].offset, _end(found[-1]))
                row = self._row(number, where, key, found)
                if hash(key) in seen:
                    row.error = f"the files of {key} are not neighbours", "write the members of each key in a row"
                seen.add(hash(key))
                yield row
        except (tarfile.TarError, EOFError) as error:
            cut = str(error)
        if cut or self._unfinished():
            place = Row(number + 1, (0, 0), f"{self.stem}:{number + 1}")
            place.error = f"the tar file is damaged or cut off here ({cut or 'no end mark'})", "copy the shard again"
            yield place

    def read(self, number: int, where: Where) -> Row:
        members = list(self._members(*where))
        return self._row(number, where, _split(members[0])[0], members)

    def sound(self, place: str) -> bytes:
        found = PLACE.search(place)
        if found is None:
            raise ValueError(f"{self.name}::{place} names no place in a tar file")
        return os.pread(self.file, int(found[2]), int(found[1]))

    def _members(self, start: int, end: int | None) -> Iterator[tarfile.TarInfo]:
        """Files from one offset to another, directories left out."""
        with self.path.open("rb") as file:
            file.seek(start)
            try:
                tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115
            except tarfile.ReadError as error:
                what = "compressed, so its records cannot be reached one by one" if _compressed(file) else str(error)
                raise tarfile.ReadError(what) from error
            while True:
                member = tar.next()
                if member is None or (end is not None and member.offset >= end):
                    return
                tar.members = []  # type: ignore[attr-defined]  # tarfile remembers every member, which for a million is a gigabyte
                if member.isfile() and _split(member)[0]:
                    yield member

    def _row(self, number: int, where: Where, key: str, members: list[tarfile.TarInfo]) -> Row:
        row = Row(number, where, key)
        texts = [member for member in members if _split(member)[1] == "json"]
        if not texts:
            names = ", ".join(member.name for member in members[:3])
            row.error = f"no {key}.json beside {names}", "write the record as KEY.json beside its sound"
            return row
        try:
            row.value = parse(os.pread(self.file, texts[0].size, texts[0].offset_data))
        except ValueError as error:
            row.error = f"{texts[0].name} is not JSON ({error})", "write one JSON object in it"
            return row
        if not isinstance(row.value, dict):
            row.error = f"{texts[0].name} is not a JSON object", 'write {"messages": [...]} in it'
            return row
        sounds = [member for member in members if _split(member)[1].lower().endswith(SOUND)]
        pool = sounds_of(row.value) or [member.name for member in sounds if len(sounds) == 1]
        arrange(row, row.value, pool, lambda path, _: self._reference(path, sounds))
        return row

    def _reference(self, path: Any, sounds: list[tarfile.TarInfo]) -> Any:
        found = [m for m in sounds if path in (m.name, m.name.split("/")[-1], _split(m)[1])]
        if not found:
            return beside(self.folder, path)
        return f"{self.name}::{found[0].name}@{found[0].offset_data}+{found[0].size}"

    def _unfinished(self) -> bool:
        """A tar file ends with blocks of zeros; one cut between two members or inside the last one does not."""
        size = os.fstat(self.file).st_size
        return size < 1024 or any(os.pread(self.file, 1024, size - 1024))


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and rest of a member's name; empty for names that follow no layout (hidden files, no ending)."""
    found = NAME.match(member.name.removeprefix("./"))
    return (found["key"], found["rest"]) if found else ("", "")


def _end(member: tarfile.TarInfo) -> int:
    return member.offset_data + -(-member.size // 512) * 512


def _compressed(file: BinaryIO) -> bool:
    file.seek(0)
    return file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
