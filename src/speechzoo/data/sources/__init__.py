"""Where records come from: JSONL files, Parquet and tar shards, Hugging Face data sets, and the sound in them.

A sound is named by its path or, inside a shard, by a reference `SHARD::PLACE`; `read_clip` takes both.
"""

from speechzoo.data.sources.access import clip_file, clip_stamp, open_source, read_clip, resolve, source_name
from speechzoo.data.sources.base import Row, Source, file_stamp

__all__ = [
    "Row",
    "Source",
    "clip_file",
    "clip_stamp",
    "file_stamp",
    "open_source",
    "read_clip",
    "resolve",
    "source_name",
]
