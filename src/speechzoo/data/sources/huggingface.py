"""Data sets of Hugging Face `datasets`: Arrow files mapped into memory, so that any row is read at once.

`hf:NAME[:SPLIT]`: a folder written by `save_to_disk`, a folder of files that `load_dataset` reads, or a name on the
Hub; the split is `train` where none is given. Streaming data sets cannot be continued exactly and are not taken.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from speechzoo.data.sources.base import PREFIX, Row, Source, Where, file_stamp, needs
from speechzoo.data.sources.table import COLUMNS, number_of, sound_of, table_row


class HuggingFace(Source):
    """Rows of a data set; where = (row, 0)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        where, split = parts(name)
        folder, data = Path(where), load_rows(where, split)
        if "messages" not in data.column_names:
            raise ValueError(f"{name}: has no column messages (its columns: {', '.join(data.column_names)})")
        kept = [column for column in COLUMNS if column in data.column_names]
        self.data = data.select_columns(kept).with_format("arrow")
        self.beside = folder if folder.is_dir() else Path.cwd()

    def stamp(self) -> str:
        files = sorted(entry["filename"] for entry in self.data.cache_files)
        stamps = [f"{file}|{file_stamp(file)}" for file in files]
        return hashlib.sha256(repr((self.data.num_rows, stamps)).encode()).hexdigest()

    def rows(self) -> Iterator[Row]:
        for number in range(1, self.data.num_rows + 1):
            yield self.read(number, (number - 1, 0))

    def read(self, number: int, where: Where) -> Row:
        return table_row(number, where, self.name, self.beside, *self._values(where[0], False))

    def sound(self, place: str) -> Any:
        number, index = number_of(place)
        sounds: list[Any] = []
        table_row(number, (number - 1, 0), self.name, self.beside, *self._values(number - 1, True), sounds)
        return sound_of(sounds[index], self.beside, self.name, place)

    def _values(self, row: int, sound: bool) -> tuple[dict[str, Any], bool]:
        """A row by column, and whether the bytes of its sound are in it."""
        table = self.data[row : row + 1]
        if not sound and "audio" in table.column_names:
            audio = table["audio"].combine_chunks()
            stored = str(audio.type).startswith("struct") and audio.type.get_field_index("bytes") >= 0
            if stored and not audio.null_count and not audio.field("bytes").null_count:
                # The path alone: the bytes stay on disk.
                path = audio.field("path").to_pylist()[0]
                return {**table.drop_columns(["audio"]).to_pylist()[0], "audio": {"path": path}}, False
        values: dict[str, Any] = table.to_pylist()[0]
        return values, True


def load_rows(name: str, split: str) -> Any:
    """A split of a data set: of a folder that `save_to_disk` wrote, or of whatever `load_dataset` reads; or the rows of
    Parquet files (a pattern).

    Raises:
        ImportError: if `datasets` is not installed.
        ValueError: if it cannot be loaded, or has no such split; one line.
    """
    datasets, folder = needs("datasets"), Path(name).expanduser()
    try:
        if folder.suffix == ".parquet":
            return datasets.load_dataset("parquet", data_files=str(folder), split="train")
        if not any((folder / file).is_file() for file in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(name, split=split)
        data = datasets.load_from_disk(str(folder))
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"{name}: cannot be loaded by datasets ({str(error).splitlines()[0]})") from error
    if isinstance(data, datasets.DatasetDict) and split not in data:
        raise ValueError(f"{name}: has no split {split} (its splits: {', '.join(data)})")
    return data[split] if isinstance(data, datasets.DatasetDict) else data


def parts(name: str) -> tuple[str, str]:
    """What to load and which split, of `hf:NAME[:SPLIT]`."""
    rest = name.removeprefix(PREFIX)
    if ":" in rest and not Path(rest).expanduser().exists():
        rest, _, split = rest.rpartition(":")
        return rest, split
    return rest, "train"
