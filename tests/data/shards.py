"""Writes the records of a manifest as Parquet, tar and Arrow shards."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def rows_of(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


def sound_of(row: dict[str, Any], folder: Path) -> list[tuple[str, bytes]]:
    """Names and bytes of the sounds of a record, in the order they stand in it."""
    found = []
    for message in row["messages"]:
        parts = message["content"] if isinstance(message["content"], list) else []
        paths = [part["path"] for part in parts if part["type"] == "audio"]
        found += [*paths, message["audio"]] if "audio" in message else paths
    return [(Path(path).name, (folder / path).read_bytes()) for path in found]


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def write_tars(folder: Path, rows: list[dict[str, Any]], sounds: Path, shards: int) -> str:
    """One key a record; sounds are `KEY.N.wav`, named so in the JSON except where the key has one."""
    folder.mkdir(parents=True, exist_ok=True)
    size = -(-len(rows) // shards)
    for shard in range(shards):
        with tarfile.open(folder / f"s-{shard:03d}.tar", "w") as tar:
            for number, row in enumerate(rows[shard * size : (shard + 1) * size], start=shard * size):
                row = json.loads(json.dumps(row))
                clips = sound_of(row, sounds)
                index = 0
                for message in row["messages"]:
                    for part in message["content"] if isinstance(message["content"], list) else []:
                        if part["type"] == "audio":
                            part["path"] = f"{index}.wav"
                            index += 1
                            if len(clips) == 1:
                                del part["path"]
                    if "audio" in message:
                        message["audio"] = f"{index}.wav"
                        index += 1
                key = f"part/{number:06d}"
                add(tar, f"{key}.json", json.dumps(row).encode())
                for place, (_, content) in enumerate(clips):
                    add(tar, f"{key}.{place}.wav", content)
    return str(folder / "*.tar")


def table_rows(rows: list[dict[str, Any]], sounds: Path, text: bool) -> list[dict[str, Any]]:
    """Rows in the chat layout: messages as JSON text or structs, sound in `audios` as `datasets.Audio` stores it."""
    table = []
    for row in rows:
        clips = [{"bytes": content, "path": name} for name, content in sound_of(row, sounds)]
        messages = []
        for message in row["messages"]:
            content = message["content"]
            parts = [{"type": "text", "text": content}] if isinstance(content, str) and not text else content
            if isinstance(parts, list):
                parts = [{"type": part["type"], "text": part.get("text")} for part in parts]
                parts = [{k: v for k, v in part.items() if v is not None} for part in parts] if text else parts
            entry = {"role": message["role"], "content": parts, "units": message.get("units")}
            messages.append({k: v for k, v in entry.items() if v is not None} if text else entry)
        table.append({"id": row["id"], "messages": json.dumps(messages) if text else messages, "audios": clips})
    return table


def write_parquet(folder: Path, rows: list[dict[str, Any]], sounds: Path, shards: int, text: bool = False) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    part = pa.struct({"type": pa.string(), "text": pa.string()})
    message = pa.struct({"role": pa.string(), "content": pa.list_(part), "units": pa.list_(pa.int64())})
    schema = pa.schema(
        {
            "id": pa.string(),
            "messages": pa.string() if text else pa.list_(message),
            "audios": pa.list_(pa.struct({"bytes": pa.binary(), "path": pa.string()})),
        }
    )
    size = -(-len(rows) // shards)
    for shard in range(shards):
        some = table_rows(rows[shard * size : (shard + 1) * size], sounds, text)
        table = pa.Table.from_pylist(some, schema=schema)
        parquet.write_table(table, folder / f"s-{shard:03d}.parquet", row_group_size=2)
    return str(folder)


def write_arrow(folder: Path, rows: list[dict[str, Any]], sounds: Path) -> str:
    """A `DatasetDict` with the split `dev`."""
    import datasets
    import pyarrow as pa

    table = pa.Table.from_pylist(table_rows(rows, sounds, text=True))
    # The very type of `datasets.Audio`; encoding by that class takes torchcodec.
    data = datasets.Dataset(table).cast_column("audios", datasets.List(datasets.Audio()))
    datasets.DatasetDict({"dev": data}).save_to_disk(str(folder))
    return f"hf:{folder}:dev"


KINDS: dict[str, Callable] = {
    "tar": partial(write_tars, shards=3),
    "parquet": partial(write_parquet, shards=2),
    "parquet-text": partial(write_parquet, shards=1, text=True),
    "arrow": write_arrow,
}
