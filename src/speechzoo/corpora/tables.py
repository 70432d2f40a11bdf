"""Rows of what others publish: Hugging Face data sets and Parquet files mapped into memory, JSON and JSONL read on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from json import JSONDecoder
from pathlib import Path
from typing import Any

from speechzoo.corpora.stage import Broken
from speechzoo.data.sources.base import needs
from speechzoo.data.sources.huggingface import load_rows

CHUNK = 1 << 20  # characters


def rows(name: str, split: str = "train") -> Iterator[tuple[int, dict[str, Any] | Broken]]:
    """Numbers (from 0) and rows of a data set; the cells of columns with sound in them are functions that read it.

    Args:
        name: a .json file (an array, or an object a line as UltraChat's), a .jsonl file, a Parquet file, a pattern of
            them, a folder that `datasets` wrote or can load, or a name on the hub.
        split: of a data set of `datasets`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it cannot be read at all; single lines that cannot are broken rows.
    """
    path = Path(name).expanduser()
    if path.suffix in (".json", ".jsonl"):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        with path.open("rb") as file:
            array = file.read(256).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        return enumerate(_objects(_array(path) if array else _each_line(path), path))
    return enumerate(_table(name, split))


def _table(name: str, split: str) -> Iterator[dict[str, Any]]:
    datasets, data = needs("datasets"), load_rows(name, split)
    sounds = {}
    for column, feature in data.features.items():
        if isinstance(feature, datasets.Audio):  # its bytes as they are: decoding comes later, and in one place
            data = data.cast_column(column, datasets.Audio(decode=False))
        if isinstance(feature, datasets.Audio) or (isinstance(feature, dict) and "bytes" in feature):
            sounds[column] = data.select_columns([column])
    # Sound is read where it is wanted: not for the shares of others, nor for what is done.
    for number, row in enumerate(data.remove_columns(list(sounds))):
        yield {**row, **{column: partial(_cell, cells, number, column) for column, cells in sounds.items()}}


def _cell(cells: Any, number: int, column: str) -> Any:
    return cells[number][column]


def _objects(values: Iterator[Any], path: Path) -> Iterator[dict[str, Any] | Broken]:
    for number, value in enumerate(values, start=1):
        if isinstance(value, (dict, Broken)):
            yield value
        else:
            yield Broken("not a JSON object", f"{path}, record {number}")


def _each_line(path: Path) -> Iterator[Any]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield json.loads(line.decode("utf-8-sig"))
            except (ValueError, RecursionError) as error:
                yield Broken("not JSON", f"{path}:{number} ({error})")


def _array(path: Path) -> Iterator[Any]:
    """Entries of a JSON array of any size, one after the other."""
    read, text, at = JSONDecoder().raw_decode, "", 0
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        text = file.read(CHUNK).lstrip()[1:]
        while True:
            while at < len(text) and text[at] in " \t\r\n,":
                at += 1
            if text[at : at + 1] == "]":
                return
            try:
                value, at = read(text, at)
            except RecursionError:
                yield Broken("not JSON", f"{path}: brackets are nested too deep, what comes after them is not read")
                return
            except ValueError as error:
                if not (more := file.read(max(CHUNK, len(text) - at))):
                    yield Broken("not JSON", f"{path}: its end is cut off or damaged ({error})")
                    return
                text, at = text[at:] + more, 0
                continue
            yield value
