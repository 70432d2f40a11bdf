"""From names to sources, and from references to sound."""

from __future__ import annotations

import os
import resource
from collections.abc import Sequence
from functools import lru_cache
from glob import escape, glob
from io import BytesIO
from pathlib import Path

from torch import Tensor

from speechzoo.audio import SAMPLE_RATE, read_audio
from speechzoo.data.parts import data_bytes, is_data, shown
from speechzoo.data.sources.base import MARK, PREFIX, Source, file_stamp
from speechzoo.data.sources.huggingface import HuggingFace, parts
from speechzoo.data.sources.jsonl import JsonLines
from speechzoo.data.sources.parquet import ParquetShard
from speechzoo.data.sources.tar import TarShard

SHARDS: dict[str, type[Source]] = {".parquet": ParquetShard, ".tar": TarShard}


def may_stay_open() -> int:
    """Sources a process keeps open: 256, and no more than a quarter of its files (of which macOS allows 256)."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 256 if limit == resource.RLIM_INFINITY else max(1, min(256, limit // 4))


def resolve(paths: str | Path | Sequence[str | Path]) -> list[str]:
    """Sources by name: patterns (`shards/*.tar`) and folders of shards spelled out, sorted, paths made absolute.

    Raises:
        FileNotFoundError: if there is no such file, or none that a pattern fits.
    """
    found: list[str] = []
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        text = str(path)
        if text.startswith(PREFIX):
            name, split = parts(text)
            local = Path(name).expanduser()
            found.append(f"{PREFIX}{local.absolute() if local.exists() else name}:{split}")
            continue
        file = Path(text).expanduser().absolute()
        if file.is_file():
            found.append(str(file))
            continue
        pattern = f"{escape(str(file))}/*" if file.is_dir() else str(file)
        files = [name for name in sorted(glob(pattern, recursive=True)) if os.path.isfile(name)]
        if file.is_dir():
            files = [name for name in files if Path(name).suffix in SHARDS]
        if not files:
            raise FileNotFoundError(f"{file}: no such manifest (JSONL, Parquet or tar shards, or hf:NAME:SPLIT)")
        found += files
    return found


def source_name(path: str) -> str:
    """A short name: that of the file without its ending, of the folder of a pattern, of a data set and its split."""
    if path.startswith(PREFIX):
        name, split = parts(path)
        return f"{Path(name).name}_{split}"
    stem = Path(path).stem
    return Path(path).absolute().parent.name if set(stem) & set("*?[") else stem


def open_source(name: str) -> Source:
    """The source of a resolved name, kept open by each process.

    Raises:
        OSError: if it is not there.
        ValueError: if it is not of its kind, or lacks what records need.
    """
    try:
        stat = os.stat(parts(name)[0] if name.startswith(PREFIX) else name)
        state = stat.st_ino, stat.st_size, stat.st_mtime_ns  # of a file put in its place meanwhile, another one
    except FileNotFoundError:
        if not name.startswith(PREFIX):
            raise
        state = None  # a name on the Hub
    return _open(name, os.getpid(), state)  # what a parent process opened is no good after a fork


@lru_cache(maxsize=may_stay_open())
def _open(name: str, pid: int, state: tuple[int, int, int] | None) -> Source:
    if name.startswith(PREFIX):
        return HuggingFace(name)
    return SHARDS.get(Path(name).suffix, JsonLines)(name)


def in_shard(clip: str | Path) -> bool:
    """Whether a sound is named by a reference."""
    text = str(clip)
    if MARK not in text:
        return False
    name = shard_of(text)
    return name.startswith(PREFIX) or Path(name).suffix in SHARDS


def shard_of(clip: str) -> str:
    """The shard of a reference."""
    return clip.rpartition(MARK)[0]


def clip_file(clip: str | Path) -> Path | BytesIO:
    """What to decode: a path, or the bytes of a sound in a shard or a `data:` URI.

    Raises:
        OSError: if the shard is not there any more.
        ValueError: if there is no such sound in it.
    """
    if is_data(clip):
        return BytesIO(data_bytes(str(clip)))
    if not in_shard(clip):
        return Path(clip)
    name, _, place = str(clip).rpartition(MARK)
    found = open_source(name).sound(place)
    return BytesIO(found) if isinstance(found, bytes) else found


def read_clip(clip: str | Path, sample_rate: int = SAMPLE_RATE) -> Tensor:
    """`read_audio` for a path, a reference or a `data:` URI. Shape: `[T]`, float32, at `sample_rate` Hz."""
    file = clip_file(clip)
    return read_audio(file, sample_rate, name=shown(clip))


def clip_stamp(clip: str | Path) -> str:
    """What changes when a sound or its shard does.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if in_shard(clip):
        name, _, place = str(clip).rpartition(MARK)
        return f"{name}|{open_source(name).stamp()}|{place}"
    path = Path(clip)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    return f"{path.resolve()}|{file_stamp(path)}"
