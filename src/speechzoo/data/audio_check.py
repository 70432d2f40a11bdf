"""Checking sound files by decoding each one once, in parallel; results are remembered between runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lightning.pytorch.utilities import rank_zero_warn
from xxhash import xxh3_64_hexdigest

from speechzoo.audio import SAMPLE_RATE, SoundError, check_question, read_audio
from speechzoo.data.parts import is_data, shown
from speechzoo.data.sources import file_stamp
from speechzoo.system.files import write_atomically

VERSION = 2
"""Of the meaning of a check: what an earlier one found is not remembered."""


@dataclass(frozen=True)
class AudioInfo:
    """What one look at a sound file found."""

    samples: int  # at 16 kHz; 0 where the file cannot be used
    error: str | None = None  # why it cannot be used
    hint: str | None = None  # what to do about it
    lasting: bool = True  # holds until the file changes; else it may work when tried again

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


def inspect_audio(path: str | Path, sound: BinaryIO | None = None) -> AudioInfo:
    """Decode a file once and say how long it is and whether it is missing, empty, cut off, damaged or silent.

    Args:
        sound: the file, open, where it has no path of its own; `path` then only names it.
    """
    if sound is None and is_data(str(path)):
        hint = "write it to a file beside the manifest, or into a Parquet or tar shard"
        return AudioInfo(0, f"{shown(str(path))}: sound inside a manifest", hint)
    try:
        return AudioInfo(len(check_question(read_audio(sound or path, name=str(path)), str(path))))
    except FileNotFoundError:
        return AudioInfo(0, f"no such audio file: {path}", "paths are relative to the folder of the manifest")
    except SoundError as error:
        return AudioInfo(0, error.problem, error.hint)
    except (OSError, RuntimeError) as error:  # rights, too many open files, a network that is down
        return AudioInfo(0, f"{path}: cannot be read ({error})", "check the file", lasting=False)


def check_audio(paths: Iterable[str | Path], memory: str | Path | None = None) -> dict[Path, AudioInfo]:
    """`inspect_audio` for many files, each decoded once.

    Args:
        paths: files; repeated ones count once.
        memory: file of earlier results (JSON, then a digest), read and extended; a damaged one is made anew. A sound is
            looked at again when its size or time of change differs. None remembers nothing.
    """
    memory = Path(memory).expanduser() if memory else None
    known = _load(memory)
    unique = sorted({Path(path) for path in paths})
    stamps = [_stamp(path) for path in unique]
    found = {path: AudioInfo(**known[stamp]) for path, stamp in zip(unique, stamps, strict=True) if stamp in known}
    todo = [path for path in unique if path not in found]
    with ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1)) as pool:
        found |= dict(zip(todo, pool.map(inspect_audio, todo), strict=True))
    if memory and todo:
        known = {stamp: info for stamp, info in _load(memory).items() if stamp.startswith(f"{VERSION}|")}
        looked = {stamp: found[path] for path, stamp in zip(unique, stamps, strict=True) if stamp}
        known |= {stamp: asdict(info) for stamp, info in looked.items() if info.lasting}
        remember(memory, sealed(json.dumps(known)))
    return found


def remember(file: Path, content: bytes | str) -> None:
    """Write what only saves time the next time; where it cannot be written, a warning says so."""
    try:
        write_atomically(file, content)
    except OSError as error:
        hint = "set $SPEECHZOO_CACHE to a folder that can be written"
        rank_zero_warn(f"{file}: what the look at the data found is not remembered ({error}); {hint}")


def _stamp(path: Path) -> str | None:
    try:
        return f"{VERSION}|{path}|{file_stamp(path)}"
    except (OSError, ValueError):  # a NUL in the path
        return None


def sealed(text: str) -> str:
    """A line with its digest as the next, by which damage to a number is found too."""
    return f"{text}\n{xxh3_64_hexdigest(text.encode())}"


def _load(memory: Path | None) -> dict[str, dict[str, Any]]:
    try:
        whole = memory.read_text() if memory else ""
        text = whole.partition("\n")[0]
        return dict(json.loads(text)) if sealed(text) == whole else {}
    except (OSError, ValueError):  # not there, or damaged: made anew
        return {}
