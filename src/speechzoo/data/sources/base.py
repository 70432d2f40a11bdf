"""What a source of records is: a pass over all of them once, then any of them by its place."""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any
from weakref import finalize

from speechzoo.data.parts import is_data

PREFIX, MARK = "hf:", "::"
"""What names of Hugging Face data sets begin with; what stands between a shard and the place of a sound in it."""

Where = tuple[int, int]
"""Place of a record: two numbers that its source understands."""


@dataclass
class Row:
    """One record as its source holds it, not checked yet.

    Attributes:
        number: its line in a JSONL file, else its place in the source, from 1.
        name: its id where it brings none.
        value: the record in the form of a manifest, sound as absolute paths or references; None with `error`.
        error: why it cannot be read, and what to do about it.
    """

    number: int
    where: Where
    name: str
    value: Any = None
    error: tuple[str, str] | None = None


class Source(ABC):
    """Records of one file, shard or data set.

    Args:
        name: what `open_source` was asked for: an absolute path, or `hf:NAME:split`.
    """

    def __init__(self, name: str) -> None:
        self.name, self.path = name, Path(name)
        self.folder, self.stem = str(self.path.parent), self.path.stem  # once: pathlib is slow a million times

    def stamp(self) -> str:
        """What changes when the content does.

        Raises:
            OSError: if it is not there any more.
        """
        return file_stamp(self.path)

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """All records in their order, the unreadable ones too."""

    @abstractmethod
    def read(self, number: int, where: Where) -> Row:
        """One record, without the bytes of its sound."""

    def sound(self, place: str) -> bytes | Path:
        """The sound that the reference `NAME::place` names: the bytes of a sound file, or where that is."""
        raise ValueError(f"{self.name} holds no sound")


def opened(owner: Any, path: Path) -> int:
    """Descriptor of a file, to read from at any place, closed when its owner goes."""
    descriptor = os.open(path, os.O_RDONLY)
    finalize(owner, os.close, descriptor)
    return descriptor


def file_stamp(path: str | Path) -> str:
    """Size and time of change of a file.

    Raises:
        OSError: if it is not there.
    """
    stat = os.stat(path)
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def put_sound(value: Any, sound: Callable[[Any, int], Any]) -> Any:
    """A record with each `path` of an audio part and each `audio` of an answer replaced.

    Args:
        sound: of what stands there (None where nothing does) and its number in the record, from 0. What is not of the
            right form is left for `check_messages` to find.
    """
    messages = value.get("messages") if isinstance(value, dict) else None
    if not isinstance(messages, list):
        return value
    number, placed = 0, []
    for message in messages:
        if isinstance(message, dict):
            message = dict(message)
            if isinstance(message.get("content"), list):
                parts = []
                for part in message["content"]:
                    if isinstance(part, dict) and part.get("type") == "audio":
                        found = sound(part.get("path"), number)
                        part = part if found is None else {**part, "path": found}
                        number += 1
                    parts.append(part)
                message["content"] = parts
            if message.get("audio") is not None:
                message["audio"] = sound(message["audio"], number)
                number += 1
        placed.append(message)
    return {**value, "messages": placed}


def parse(text: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: if it is none, or nested deeper than can be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets are nested too deep") from None


def arrange(row: Row, value: dict[str, Any], pool: list[Any], place: Callable[[Any, int], Any]) -> None:
    """Give a row its record, with its sound where `check_messages` looks for it.

    A part's own `audio` is taken for its `path`; audio parts that bring neither take the sounds of `pool` in order. A
    record with sound in `pool` and no turn to hear or say any is in error: it would be learnt as text alone.

    Args:
        place: as in `put_sound`.
    """
    messages, left = value.get("messages"), list(pool)
    for message in messages if isinstance(messages, list) else []:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else []:
            if isinstance(part, dict) and part.get("type") == "audio" and part.get("path") is None and "audio" in part:
                part["path"] = part.pop("audio")
    placed: list[Any] = []

    def put(given: Any, index: int) -> Any:
        placed.append(index)
        return place(left.pop(0) if given is None and left else given, index)

    row.value = put_sound(value, put)
    named = any(sound.get("path") if isinstance(sound, dict) else sound for sound in pool)  # a null one may be a struct
    if named and not placed and isinstance(messages, list) and messages:
        hint = 'write {"type": "audio"} into the content of the turn that it belongs to, or take the sound out'
        row.error = "sound is beside its messages, and none of them has an audio part", hint


def sounds_of(values: dict[str, Any]) -> list[Any]:
    """The sounds that a record has beside its messages: those of `audio` and `audios`."""
    pool = [values[key] for key in ("audio", "audios") if values.get(key) is not None]
    return [sound for entry in pool for sound in (entry if isinstance(entry, list) else [entry])]


def beside(folder: str, path: Any) -> Any:
    """A path relative to a folder made absolute; `data:` URIs, references to `hf:` sets and what is no path stay."""
    named = isinstance(path, str) and path and not is_data(path) and not (path.startswith(PREFIX) and MARK in path)
    return os.path.join(folder, path) if named else path


def needs(module: str) -> Any:
    """An optional module.

    Raises:
        ImportError: if it is not installed; says what to install.
    """
    try:
        return import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(f"these data need {package}: pip install 'speechzoo[data]'") from error
