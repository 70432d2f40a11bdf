"""Checked records of all sources together: some 60 bytes each in memory, read from their sources when asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from tarfile import TarError
from typing import Any, overload

import numpy as np

from speechzoo.data.index import Index, called, content_hash
from speechzoo.data.record import Record
from speechzoo.data.sources import open_source

PER_RECORD = ("source", "where", "number", "name", "content", "own", "shared", "top_unit", "clips", "first")


class Records(Sequence[Record]):
    """A sequence of records over the indexes of their sources.

    Attributes:
        sources: resolved names.
        folder: where what is found out about them may be kept, if anywhere.
        samples: 16 kHz samples of the clips of all users, int32; those of record i are the `clips[i]` from `first[i]`.
        top_unit: the largest unit of each record, -1 where there are none.
        own: which records bring an id.
        shared: which bring none, and would be called as a record of another source is: their ids begin with as much of
            the source's path as tells them apart.
    """

    def __init__(self, sources: Sequence[str], indexes: Sequence[Index], folder: Path | None = None) -> None:
        self.sources, self.folder = list(sources), folder
        sizes = [len(index.number) for index in indexes]
        self.source = np.repeat(np.arange(len(indexes), dtype=np.int32), sizes)
        self.where = _joined([index.where for index in indexes], np.zeros((0, 2), np.int64))
        self.number = _joined([index.number for index in indexes], np.zeros(0, np.int64))
        self.name = _joined([index.name for index in indexes], np.zeros(0, np.uint64))
        self.content = _joined([index.content for index in indexes], np.zeros(0, np.uint64))
        self.own = _joined([index.own for index in indexes], np.zeros(0, bool))
        _, same, count = np.unique(self.name, return_inverse=True, return_counts=True)
        self.shared = ~self.own & (count[same] > 1) if len(self.name) else self.own
        self.labels = labels_of(self.sources)
        self.top_unit = _joined([index.top_unit for index in indexes], np.zeros(0, np.int32))
        self.clips = _joined([index.clips for index in indexes], np.zeros(0, np.int32))
        self.samples = _joined([index.samples for index in indexes], np.zeros(0, np.int32))
        self.first = np.cumsum(self.clips, dtype=np.int64) - self.clips

    def __len__(self) -> int:
        return len(self.number)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> Records: ...

    def __getitem__(self, index: int | slice) -> Record | Records:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        number, where = int(self.number[index]), self.where[index]
        name = self.sources[self.source[index]]
        try:
            row = open_source(name).read(number, (int(where[0]), int(where[1])))
            same = row.error is None and content_hash(row) == int(self.content[index])
        except (IndexError, TarError):  # it ends before, or is none of its kind any more
            same = False
        if not same:
            hint = "the file changed; touch it and start again"
            raise ValueError(f"{name}:{number}: is not the record that was checked: {hint}")
        identity = called(row)
        if self.shared[index]:
            label = self.labels[self.source[index]]
            file = label.rpartition("/")[2]  # by which most names begin already
            identity = (
                f"{label}{identity.removeprefix(file)}" if identity.startswith(f"{file}:") else f"{label}/{identity}"
            )
        return Record(identity, row.value.get("messages") or [], Path(name), number, self.clip_samples(index))

    def __iter__(self) -> Iterator[Record]:
        return (self[index] for index in range(len(self)))

    def clip_samples(self, index: int) -> list[int]:
        """16 kHz samples of each clip of the user, in order."""
        first = self.first[index]
        return list(self.samples[first : first + self.clips[index]].tolist())

    def take(self, indices: Any) -> Records:
        """Those of some numbers, or of a mask."""
        some = object.__new__(Records)
        some.sources, some.samples, some.folder, some.labels = self.sources, self.samples, self.folder, self.labels
        for key in PER_RECORD:
            setattr(some, key, getattr(self, key)[indices])
        return some

    def owners(self, clips: np.ndarray) -> np.ndarray:
        """Numbers of the records that a mask over all their clips, one record after the other, touches."""
        return np.unique(np.repeat(np.arange(len(self)), self.clips)[clips])

    def all_samples(self) -> np.ndarray:
        """Samples of all their clips, one record after the other, `[M]`."""
        ends = np.cumsum(self.clips, dtype=np.int64)
        offsets = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - self.clips, self.clips)
        samples: np.ndarray = self.samples[np.repeat(self.first, self.clips) + offsets]
        return samples

    def fingerprint(self) -> str:
        """A hash of which records these are and how long their clips: changes when their sources do."""
        digest = hashlib.sha256(repr([(name, open_source(name).stamp()) for name in self.sources]).encode())
        for array in (self.source, self.number, self.clips, self.all_samples()):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def labels_of(sources: Sequence[str]) -> list[str]:
    """For each source the shortest end of the path to it that no other source has: its folder, or more of it."""
    paths = [re.split(r"[/\\\\]", re.sub(r"\.[A-Za-z0-9]+$", "", name.replace(":", "/"))) for name in sources]
    labels = []
    for number, path in enumerate(paths):
        others = [other for index, other in enumerate(paths) if index != number]
        size = next((n for n in range(1, len(path)) if all(other[-n:] != path[-n:] for other in others)), len(path))
        labels.append("/".join(path[-size:]))
    return labels


def _joined(arrays: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate(arrays) if arrays else empty
