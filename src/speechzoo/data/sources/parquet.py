"""Parquet shards, read by row group.

A row group is the least that can be read, so shards with sound in them should have small ones: the writer's
`row_group_size` (`datasets` chooses 100 rows where there is sound). Text is read without the bytes of sound beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

from speechzoo.data.sources.base import Row, Source, Where, needs
from speechzoo.data.sources.table import COLUMNS, number_of, sound_of, table_row

GROUPS_KEPT = 4
"""Row groups a process holds: a record's text and sound are asked for one after the other."""


class ParquetShard(Source):
    """Rows of a Parquet file; where = (row group, row in it)."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        parquet = needs("pyarrow.parquet")
        try:
            self.file = parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
            raise ValueError(f"{name}: cannot be read as Parquet ({error}); copy the shard again") from error
        leaves = [self.file.schema.column(index).path for index in range(len(self.file.schema))]
        self.leaves = {index: leaf for index, leaf in enumerate(leaves) if leaf.split(".")[0] in COLUMNS}
        if not any(leaf.split(".")[0] == "messages" for leaf in leaves):
            columns = ", ".join(self.file.schema_arrow.names)
            raise ValueError(f"{name}: has no column messages (its columns: {columns})")
        metadata = self.file.metadata
        sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        self.starts = [0, *accumulate(sizes)]

    def rows(self) -> Iterator[Row]:
        for group in range(len(self.starts) - 1):
            for row in range(self.starts[group + 1] - self.starts[group]):
                yield self.read(self.starts[group] + row + 1, (group, row))

    def read(self, number: int, where: Where) -> Row:
        try:
            values, whole = self._values(where, False)
        except (OSError, ValueError) as error:
            row = Row(number, where, f"{self.path.stem}:{number}")
            row.error = f"row group {where[0]} cannot be read ({error})", "copy the shard again"
            return row
        return table_row(number, where, self.name, self.path.parent, values, whole)

    def sound(self, place: str) -> Any:
        number, index = number_of(place)
        group = bisect_right(self.starts, number - 1) - 1
        where = (group, number - 1 - self.starts[group])
        sounds: list[Any] = []
        table_row(number, where, self.name, self.path.parent, *self._values(where, True), sounds)
        return sound_of(sounds[index], self.path.parent, self.name, place)

    def _values(self, where: Where, sound: bool) -> tuple[dict[str, Any], bool]:
        """A row by column, and whether the bytes of its sound are in it."""
        group, whole = _group(self, where[0], sound)
        values: dict[str, Any] = group.slice(where[1], 1).to_pylist()[0]
        return values, whole


@lru_cache(maxsize=GROUPS_KEPT)
def _group(shard: ParquetShard, group: int, sound: bool) -> tuple[Any, bool]:
    metadata = shard.file.metadata.row_group(group)
    columns = [
        leaf
        for index, leaf in shard.leaves.items()
        if sound or not leaf.endswith(".bytes") or _only_null(metadata.column(index))
    ]
    read = shard.file.read_row_group(group, columns=columns, use_threads=False)
    return read, len(columns) == len(shard.leaves)


def _only_null(column: Any) -> bool:
    known = column.statistics
    return known is not None and known.has_null_count and known.null_count == column.num_values
