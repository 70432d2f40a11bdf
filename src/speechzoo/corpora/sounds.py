"""Clips of other people's data: where their files are, written out where they are only bytes, and how long they are."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from xxhash import xxh3_128

from speechzoo.corpora.stage import Broken
from speechzoo.data.audio_check import inspect_audio
from speechzoo.system.files import write_atomically

ENDINGS = ((b"RIFF", ".wav"), (b"fLaC", ".flac"), (b"OggS", ".ogg"))


def kept_sound(sound: Any, sounds: Path, beside: Path) -> tuple[str, float]:
    """The file of a clip, and its seconds.

    Args:
        sound: a path, or the struct {bytes, path} that `datasets.Audio` writes, or a function that gives either.
        sounds: folder for clips that come as bytes; they are kept as they are, named by their content.
        beside: folder that paths are relative to.

    Raises:
        Broken: there is none, or it cannot be used.
        DiskFullError: if there is no room.
    """
    sound = sound() if callable(sound) else sound
    content = sound.get("bytes") if isinstance(sound, dict) else None
    path = sound.get("path") if isinstance(sound, dict) else sound
    if content:
        key = xxh3_128(content).hexdigest()
        ending = next((ending for magic, ending in ENDINGS if content.startswith(magic)), ".mp3")
        file = sounds / key[:2] / f"{key}{ending}"
        info = inspect_audio(str(path or file.name), BytesIO(content))
        if not info.error and not (file.is_file() and file.stat().st_size == len(content)):
            write_atomically(file, content)
    elif isinstance(path, str) and path:
        file = beside / path
        info = inspect_audio(file)
    else:
        raise Broken("no sound file", "neither bytes nor a path")
    if info.error:
        raise Broken("no sound file" if info.error.startswith("no such") else "unusable sound", info.error)
    return str(file), info.seconds
