"""What is known of the records of a source without reading it again: places, lengths of clips, problems.

An index is made in one pass that checks every record and decodes every sound once, and is kept on disk. It is made
anew when the source changes, or one of the sound files outside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from speechzoo.data.audio_check import AudioInfo, check_audio, inspect_audio, remember
from speechzoo.data.record import all_audio, clip_paths
from speechzoo.data.schema import check_messages, unread_keys
from speechzoo.data.sources import Row, Source, clip_file, file_stamp, open_source
from speechzoo.data.sources.access import in_shard, shard_of

FORMAT = 7
ARRAYS = ("where", "number", "name", "content", "own", "top_unit", "clips", "samples", "stamps")
TOP_UNIT = np.iinfo(np.int32).max  # stands for any larger one, which no model knows either
BLOCK = 256  # records and sounds of a shard looked at together
PATHS = 50_000  # sound files outside looked at together

Fault = tuple[str, str]
"""What is wrong, and what to do about it."""


@dataclass
class Index:
    """Records of one source, as arrays.

    Attributes:
        where: places, `[N, 2]` int64.
        number: their lines or numbers, `[N]` int64.
        name: hashes of their ids, `[N]` uint64.
        content: hashes of all they hold but their sound, `[N]` uint64.
        own: which bring an id of their own, `[N]` bool.
        top_unit: their largest units, `[N]` int32; -1 where there are none.
        clips: their numbers of clips, `[N]` int32.
        samples: 16 kHz samples of all clips of the users, in order, int32; 0 for those that cannot be used.
        problems: `{number, id, message, hint, answer}`; `answer` marks those that matter only where an answer is due.
        outside: sound files and shards outside the source that its records name, each once.
        stamps: hashes of their sizes and times of change, uint64; 0 for missing ones.
        unread: keys of records that nothing reads, each once.
        lasting: it holds until something changes; False where a sound may only now be out of reach.
    """

    where: np.ndarray
    number: np.ndarray
    name: np.ndarray
    content: np.ndarray
    own: np.ndarray
    top_unit: np.ndarray
    clips: np.ndarray
    samples: np.ndarray
    problems: list[dict[str, Any]]
    outside: list[str]
    stamps: np.ndarray
    unread: list[str]
    lasting: bool = True


def index_of(name: str, memory: Path | None = None) -> Index:
    """The index of a resolved source: from disk where that still holds, else made and kept there.

    Args:
        memory: file that remembers checked sound files; indexes lie in `indexes` beside it. None keeps nothing.

    Raises:
        OSError, ValueError: if the source cannot be opened.
    """
    source = open_source(name)
    stamp = f"{FORMAT}|{source.stamp()}"
    if memory is None:
        return _make(source, None)
    file = memory.parent / "indexes" / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.npz"
    found = _load(file, stamp)
    if found is None:
        found = _make(source, memory)
        if found.lasting:
            _save(file, stamp, found)
    return found


def name_hash(name: str) -> int:
    """64 bits of an id."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def content_hash(row: Row) -> int:
    """64 bits of all that a record holds, its sound by its name."""
    return xxh3_64_intdigest(repr(row.value).encode("utf-8", "surrogatepass"))


def own_id(row: Row) -> str | None:
    """The id that a record brings, if any."""
    given = row.value.get("id") if isinstance(row.value, dict) else None
    return str(given) if isinstance(given, (str, int)) else None


def called(row: Row) -> str:
    """The id of a record, or what stands for it."""
    given = own_id(row)
    return row.name if given is None else given


def _make(source: Source, memory: Path | None) -> Index:
    where, number, names, contents = array("q"), array("q"), array("Q"), array("Q")
    own, top_unit, clips = array("b"), array("i"), array("i")
    unread: dict[str, None] = {}
    sounds = array("q")  # of each sound of each good record: its place in `inside`, or ~place in `outside`
    kept = array("i")  # sounds of each record: clips of the user, then spoken answers
    problems: list[dict[str, Any]] = []
    outside: dict[str, int] = {}
    shards: dict[str, None] = {}
    inside, faults = array("i"), {}

    def complain(row: Row, name: str, message: str, hint: str, answer: bool = False) -> None:
        name = name.encode(errors="backslashreplace").decode()  # it is going to be printed
        problems.append({"number": row.number, "id": name, "message": message, "hint": hint, "answer": answer})

    for row, found, due, infos in _inspected(source.rows()):
        name = row.name
        if row.error is not None:
            complain(row, name, *row.error)
            continue
        name = called(row)
        unread.update(dict.fromkeys(unread_keys(row.value)))
        for fault in found:
            complain(row, name, *fault, answer=fault not in due)
        messages = row.value["messages"] if not due else []
        paths = all_audio(messages)
        for path in paths:
            if path in infos:
                shards[shard_of(path)] = None
                if infos[path].error:
                    faults[len(inside)] = infos[path]
                sounds.append(len(inside))
                inside.append(infos[path].samples)
            else:
                sounds.append(~outside.setdefault(path, len(outside)))
        where.extend(row.where)
        number.append(row.number)
        names.append(name_hash(name))
        contents.append(content_hash(row))
        own.append(own_id(row) is not None)
        top_unit.append(min(max((max(m["units"]) for m in messages if m.get("units")), default=-1), TOP_UNIT))
        clips.append(len(clip_paths(messages)))
        kept.append(len(paths))
    files = list(outside)
    watched = [*files, *(shard for shard in shards if shard != source.name)]
    stamps = np.fromiter(_stamps(watched), np.uint64)  # before the look at files, so that no change is missed
    far, far_faults = _outside(files, memory)
    samples = array("i")
    at = 0
    for index in range(len(number)):
        for position in range(kept[index]):
            sound = sounds[at + position]
            bad = faults.get(sound) if sound >= 0 else far_faults.get(~sound)
            if bad is not None:
                row = source.read(number[index], (where[2 * index], where[2 * index + 1]))
                complain(row, called(row), bad.error or "", bad.hint or "")
            if position < clips[index]:
                samples.append(inside[sound] if sound >= 0 else far[~sound])
        at += kept[index]
    return Index(
        np.array(where, np.int64).reshape(-1, 2),
        np.array(number, np.int64),
        np.array(names, np.uint64),
        np.array(contents, np.uint64),
        np.array(own, bool),
        np.array(top_unit, np.int32),
        np.array(clips, np.int32),
        np.array(samples, np.int32),
        sorted(problems, key=lambda problem: problem["number"]),
        watched,
        stamps,
        list(unread),
        all(bad.lasting for bad in (*faults.values(), *far_faults.values())),
    )


def _inspected(rows: Iterable[Row]) -> Iterator[tuple[Row, list[Fault], list[Fault], dict[str, AudioInfo]]]:
    """Rows with all that is wrong with their form, what is wrong even without an answer, and looks at their sounds.

    Sounds outside the source are not looked at here.
    """
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        block: list[tuple[Row, list[Fault], list[Fault], list[tuple[str, Any]]]] = []
        waiting = 0
        for row in chain(rows, [None]):
            if row is not None:
                found = [] if row.error else list(check_messages(row.value, answer=True))
                due = list(check_messages(row.value, answer=False)) if found else []
                good = not row.error and not due
                clips = dict.fromkeys(all_audio(row.value["messages"])) if good else {}
                # Fetched here and not in the pool: the sounds of a record lie in what was just read.
                sounds = [(clip, _fetch(clip)) for clip in clips if in_shard(clip)]
                block.append((row, found, due, sounds))
                waiting += 1 + len(sounds)
            if row is None or waiting >= BLOCK:
                infos = iter(list(pool.map(_look, [sound for *_, sounds in block for sound in sounds])))
                for one, found, due, sounds in block:
                    yield one, found, due, {clip: next(infos) for clip, _ in sounds}
                block, waiting = [], 0


def _fetch(clip: str) -> Any:
    try:
        return clip_file(clip)
    except (OSError, ValueError) as error:
        hint = "write the sound into the shard, or remove the record"
        return AudioInfo(0, str(error), hint, lasting=isinstance(error, ValueError))


def _look(sound: tuple[str, Any]) -> AudioInfo:
    clip, found = sound
    if isinstance(found, AudioInfo):
        return found
    return inspect_audio(clip, found) if isinstance(found, BytesIO) else inspect_audio(found)


def _outside(files: list[str], memory: Path | None) -> tuple[array[int], dict[int, AudioInfo]]:
    """Samples of sound files, and what is wrong with some of them, by place in the list."""
    samples, faults = array("i"), {}
    for start in range(0, len(files), PATHS):
        some = files[start : start + PATHS]
        infos = check_audio(some, memory)
        for path in some:
            info = infos[Path(path)]
            if info.error:
                faults[len(samples)] = info
            samples.append(info.samples)
    return samples, faults


def _stamps(files: Iterable[str]) -> Iterator[int]:
    for file in files:
        try:
            yield name_hash(file_stamp(file))
        except (OSError, ValueError):  # a NUL in the path
            yield 0


def _save(file: Path, stamp: str, index: Index) -> None:
    stored = BytesIO()
    arrays = {key: value for key, value in vars(index).items() if isinstance(value, np.ndarray)}
    texts = {"stamp": stamp, "outside": "\n".join(map(json.dumps, index.outside))}
    texts |= {"problems": json.dumps(index.problems), "unread": json.dumps(index.unread)}
    packed = {key: np.frombuffer(value.encode("utf-8", "surrogatepass"), np.uint8) for key, value in texts.items()}
    np.savez(stored, **arrays, **packed)  # type: ignore[arg-type]  # none is called allow_pickle
    remember(file, stored.getvalue())


def _load(file: Path, stamp: str) -> Index | None:
    """The index of a file, None where there is none that holds."""
    try:
        with np.load(file) as stored:
            if _decode(stored["stamp"].tobytes()) != stamp:
                return None
            before = stored["stamps"]
            outside = (json.loads(path[0]) for path in re.finditer(rb"[^\n]+", stored["outside"].tobytes()))
            if not np.array_equal(np.fromiter(_stamps(outside), np.uint64), before):
                return None
            arrays = {key: stored[key] for key in ARRAYS}
            texts = {key: json.loads(_decode(stored[key].tobytes())) for key in ("problems", "unread")}
            # The list of files has done its work; records name their sound themselves.
            return Index(outside=[], **texts, **arrays)
    except Exception:  # zipfile and numpy raise many kinds for a damaged one
        return None


def _decode(text: bytes) -> str:
    return text.decode("utf-8", "surrogatepass")
