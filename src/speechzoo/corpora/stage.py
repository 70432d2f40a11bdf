"""A piece of work over many records that can be stopped, shared out and started again: each record is done once.

A data set's folder holds a folder per stage, in it one per shard (`00000-of-00004`) with `records.jsonl` (finished:
number, id, value, digest of what it was made of), `broken.jsonl` (number, id, reason, detail) and, at the end,
`done.json` (counts, sha256).
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_hexdigest

from speechzoo.system.files import cut_half_line, json_line, read_lines, sha256, telling_room, write_json
from speechzoo.system.locks import claim
from speechzoo.system.settings import changed

RECORDS, BROKEN, DONE, SETTINGS = "records.jsonl", "broken.jsonl", "done.json", "settings.json"
PATIENCE = 20
"""Records in a row that fail for a reason outside of them, after which work stops: more would only be lost too."""

TOLD_EVERY = 30.0  # seconds


class Broken(ValueError):
    """A record that cannot be used.

    Args:
        reason: short and the same for all records of its kind, for counting.
        detail: what is wrong with this one.
        transient: it may work when tried again.
    """

    def __init__(self, reason: str, detail: str = "", transient: bool = False) -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail, self.transient = reason, detail, transient


@dataclass(frozen=True)
class Shard:
    """Every `count`th record from `index` on, for a job of an array."""

    index: int = 0
    count: int = 1

    @classmethod
    def read(cls, text: str) -> Shard:
        """Of `i/n`, i from 0.

        Raises:
            ValueError: if it is not of this form.
        """
        index, slash, count = text.partition("/")
        if not (slash and index.isdigit() and count.isdigit() and int(index) < int(count)):
            raise ValueError(f"--shard {text}: write i/n with i from 0 to n - 1, as in 0/4")
        return cls(int(index), int(count))

    def __str__(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"


@dataclass(frozen=True)
class Item:
    """A record on its way: its place in the whole input, its id, and its value or why there is none."""

    number: int
    id: str
    value: dict[str, Any] | Broken


Result = tuple[Item, dict[str, Any] | Broken]
Work = Callable[[Sequence[Item]], Iterable[Result]]


class Stage:
    """One stage of one shard.

    Args:
        folder: of the stage.
        settings: plain data that decides its results; the stage refuses to go on with others.
    """

    def __init__(self, folder: Path, shard: Shard, settings: dict[str, Any]) -> None:
        self.folder, self.shard, self.settings = folder / str(shard), shard, settings

    def run(self, items: Iterable[Item], work: Work, window: int = 256) -> Counter[str]:
        """Do what is missing; records that were broken are tried again.

        Args:
            items: of all shards, in order; those of the others are passed over.
            work: results of some items in any order, each once.
            window: items handed over together. What is finished is written after each result.

        Returns:
            How many records are finished ("") and broken, by reason.

        Raises:
            ValueError: if the folder was made with other settings or of other input, is in use, or work stopped.
            DiskFullError: if there is no room; what is written is kept.
        """
        held = claim(self.folder, "speechzoo data")
        try:
            check_settings(self.folder.parent, self.settings)
            start = told_at = time.monotonic()
            records, broken = self.folder / RECORDS, self.folder / BROKEN
            done = _finished(records)
            counts = Counter({"": len(done)})
            seen: set[str] = set()
            (self.folder / DONE).unlink(missing_ok=True)
            with telling_room(records, None), records.open("ab") as good, broken.open("wb") as bad:
                for some in _windows(self._missing(items, done, seen), window):
                    usable = [item for item in some if isinstance(item.value, dict)]
                    failed: list[Result] = [(item, item.value) for item in some if isinstance(item.value, Broken)]
                    for item, value in chain(failed, work(usable) if usable else ()):
                        line = {"number": item.number, "id": item.id}
                        if isinstance(value, Broken):
                            line |= {"reason": value.reason, "detail": value.detail}
                            counts[value.reason] += 1
                        else:
                            line |= {"value": value, "input": _digest(item.value)}
                            counts[""] += 1
                        file = bad if isinstance(value, Broken) else good
                        file.write(json_line(line).encode())
                        file.flush()
                        if time.monotonic() - told_at > TOLD_EVERY:
                            told_at = time.monotonic()
                            progress = f"{counts['']:,} done, {counts.total() - counts['']:,} left out so far"
                            print(f"{self.folder.parent.name} {self.shard}: {progress}", file=sys.stderr, flush=True)
            if gone := next((name for name in done if name not in seen), None):
                raise ValueError(f"{gone} {self._other_input()}")
            told = {"records": counts[""], "broken": {k: v for k, v in sorted(counts.items()) if k}}
            told |= {"sha256": sha256(records), "seconds": round(time.monotonic() - start, 1)}
            write_json(self.folder / DONE, told)
            return counts
        finally:
            held.release()

    def _other_input(self) -> str:
        return (
            f"stands otherwise in the input, or not any more, than when it was done: give another folder, or delete "
            f"{self.folder} to have its records done again"
        )

    def _missing(self, items: Iterable[Item], done: dict[str, str | None], seen: set[str]) -> Iterator[Item]:
        for item in items:
            twice = item.id in seen
            seen.add(item.id)  # of all shards, so that they leave out the same together as one would
            if item.number % self.shard.count != self.shard.index:
                continue
            if twice:
                what = "an id that another record has"
                yield Item(item.number, item.id, Broken(what, f"{item.id} comes twice in the input"))
            elif item.id not in done:
                yield item
            elif done[item.id] not in (None, _digest(item.value)):
                raise ValueError(f"{item.id} {self._other_input()}")

    def finished(self) -> dict[str, str | None]:
        """Its finished records by id, each with the digest of its input."""
        return _finished(self.folder / RECORDS)

    def items(self) -> Iterator[Item]:
        """Its finished records in order, as the next stage's input.

        Raises:
            FileNotFoundError: if it was not run to its end.
        """
        if not (self.folder / DONE).is_file():
            raise FileNotFoundError(f"{self.folder}: not finished; the stages run in order: run the one before first")
        for line in in_order([self.folder / RECORDS]):
            yield Item(line["number"], line["id"], line["value"])


def each(work: Callable[[dict[str, Any]], dict[str, Any]], threads: int = 1) -> Work:
    """Work on one value at a time, in several threads; stops when `PATIENCE` in a row fail for reasons outside."""
    lock, failed = threading.Lock(), list[Broken]()

    def one(item: Item) -> Result:
        if len(failed) >= PATIENCE:
            last = f"{PATIENCE} records in a row failed, the last with {failed[-1]}"
            raise ValueError(f"{last}; the same command goes on later")
        try:
            assert isinstance(item.value, dict)
            result: dict[str, Any] | Broken = work(item.value | {"id": item.id})
        except Broken as error:
            result = error
        with lock:
            if isinstance(result, Broken) and result.transient:
                failed.append(result)
            else:
                failed.clear()
        return item, result

    def run(items: Sequence[Item]) -> Iterator[Result]:
        if threads <= 1:
            yield from map(one, items)
            return
        with ThreadPoolExecutor(min(threads, len(items))) as pool:
            try:
                yield from pool.map(one, items)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    return run


def in_order(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Lines of several files of numbered lines, by number; only their places are kept in memory."""
    places = []
    for index, file in enumerate(files):
        offset = 0
        with file.open("rb") as lines:
            for line in lines:
                places.append((int(_parsed(file, line)["number"]), index, offset))
                offset += len(line)
    opened = [file.open("rb") for file in files]
    try:
        for _, index, offset in sorted(places):
            opened[index].seek(offset)
            yield json.loads(opened[index].readline())
    finally:
        for handle in opened:
            handle.close()


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Write what decides a folder's results, or compare it with what stands there.

    Raises:
        ValueError: if they differ, naming what does.
    """
    if other := changed(folder / SETTINGS, settings):
        raise ValueError(f"{folder} was made with other settings ({other}): give another folder, or delete it")


def begin_folder(folder: Path, settings: dict[str, Any], written: Sequence[str]) -> None:
    """`check_settings` of a folder that a command is going to write files into.

    Raises:
        ValueError: if they differ, or it holds one of the files and nothing says that the command wrote it.
    """
    if not (folder / SETTINGS).is_file() and (there := next((n for n in written if (folder / n).exists()), None)):
        raise ValueError(f"{folder / there}: is not of this command, which would write over it: give another folder")
    check_settings(folder, settings)


def _finished(path: Path) -> dict[str, str | None]:
    """Finished records by id, with digests; half a line, left by a full disk or a kill, is cut off."""
    lines = (_parsed(path, line) for _, line in read_lines(path)) if cut_half_line(path) else ()
    return {line["id"]: line.get("input") for line in lines}


def _parsed(file: Path, line: str | bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except ValueError as error:
        told = f"{file}: damaged ({error}): delete {file.parent}, and the command that made it does it again"
        raise ValueError(told) from error


def _digest(value: dict[str, Any] | Broken) -> str | None:
    """Of what a record is made of; sound that a function gives is left out."""
    if isinstance(value, Broken):
        return None
    return xxh3_64_hexdigest(json.dumps(value, sort_keys=True, default=_named).encode())


def _named(value: Any) -> str:
    return xxh3_64_hexdigest(value) if isinstance(value, bytes) else str(value) if isinstance(value, Path) else ""


def _windows(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    while some := list(islice(items, size)):
        yield some
