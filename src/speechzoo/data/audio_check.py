"""Checking sound files by decoding each one once, in parallel; results are remembered between runs."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import soundfile

from speechzoo.audio import SAMPLE_RATE, read_audio
from speechzoo.data.sources import file_stamp
from speechzoo.files import write_atomically

SILENCE = 10 ** (-60 / 20)
"""Peak (60 dB below full scale) under which a clip counts as silent."""

PLACEHOLDER = 0x7FFF_0000
"""Programs that write to a pipe declare a data size from here up, because they do not know it: not a cut-off file."""

DECLARED = re.compile(r"^\s*(?:data|SSND|riff|Data Size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)


@dataclass(frozen=True)
class AudioInfo:
    """What one look at a sound file found."""

    samples: int  # at 16 kHz; 0 where the file cannot be used
    error: str | None = None  # why it cannot be used
    hint: str | None = None  # what to do about it

    @property
    def seconds(self) -> float:
        return self.samples / SAMPLE_RATE


def inspect_audio(path: str | Path, sound: BinaryIO | None = None) -> AudioInfo:
    """Decode a file once and say how long it is and whether it is missing, empty, cut off, damaged or silent.

    Args:
        sound: the file, open, where it has no path of its own; `path` then only names it.
    """
    try:
        audio = read_audio(sound or path, name=str(path))
        if sound is not None:
            sound.seek(0)
        missing = _missing_share(sound or Path(path), len(audio))
    except FileNotFoundError:
        return AudioInfo(0, f"no such audio file: {path}", "paths are relative to the folder of the manifest")
    except (ValueError, RuntimeError) as error:
        return AudioInfo(0, str(error), "convert it again from its source, or remove the record")
    if missing > 0.01:
        return AudioInfo(0, f"{path}: cut off, {missing:.0%} of the declared sound is missing", "copy the file again")
    peak = float(audio.abs().max())
    if not peak < float("inf"):
        return AudioInfo(0, f"{path}: holds values that are not finite", "convert it again from its source")
    if peak < SILENCE:
        return AudioInfo(0, f"{path}: silent (peak {peak:.1e} of full scale)", "remove the record, or raise the level")
    return AudioInfo(len(audio))


def _missing_share(path: Path | BinaryIO, samples: int) -> float:
    """Share of the sound that the header promises and the file lacks.

    libsndfile repairs the length of a cut wav in silence and only its log tells; for compressed formats the decoded
    length is less than the promised one.
    """
    info = soundfile.info(path, verbose=True)
    for declared, actual in DECLARED.findall(info.extra_info):
        if int(declared) < PLACEHOLDER:
            return 1 - int(actual) / max(int(declared), 1)
    return 1 - samples / max(info.frames * SAMPLE_RATE / info.samplerate, 1)


def check_audio(paths: Iterable[str | Path], memory: str | Path | None = None) -> dict[Path, AudioInfo]:
    """`inspect_audio` for many files, each decoded once.

    Args:
        paths: files; repeated ones count once.
        memory: JSON file of earlier results, read and extended; a file is looked at again when its size or time of
            change differs. None remembers nothing.
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
        known |= {stamp: asdict(found[path]) for path, stamp in zip(unique, stamps, strict=True) if stamp}
        write_atomically(memory, json.dumps(known))
    return found


def _stamp(path: Path) -> str | None:
    try:
        return f"{path}|{file_stamp(path)}"
    except OSError:
        return None


def _load(memory: Path | None) -> dict[str | None, dict]:
    try:
        return json.loads(memory.read_text()) if memory else {}
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
