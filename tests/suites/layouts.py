"""Miniature files in the layouts that test sets are published in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile


def wav(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    """A tone, as WAV or FLAC."""
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = 0.3 * np.sin(np.arange(int(16_000 * seconds)) * (0.05 + 0.01 * seed))
    soundfile.write(path, samples, 16_000, format="FLAC" if path.suffix == ".flac" else "WAV")
    return path


def lines(path: Path, *rows: object) -> Path:
    """JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def parquet(path: Path, rows: list[dict], groups: int = 1) -> Path:
    """A table of so many row groups."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=max(1, len(rows) // groups))
    return path


def sound(path: Path) -> dict:
    """As `datasets.Audio` writes it."""
    return {"bytes": path.read_bytes(), "path": path.name}


def librispeech(root: Path) -> Path:
    """Three utterances, of which one has a transcript, and a transcript of a fourth."""
    folder = root / "LibriSpeech" / "test-clean" / "1089" / "134686"
    for number in range(3):
        wav(folder / f"1089-134686-000{number}.flac")
    (folder / "1089-134686.trans.txt").write_text(
        "1089-134686-0000 HE HOPED THERE WOULD BE STEW\n1089-134686-0001 \n1089-134686-0009 NOT THERE\n"
    )
    return root / "LibriSpeech"
