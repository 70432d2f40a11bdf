"""Reads a folder of shards without running what is in it: torch's own reader unpickles its index with no limit."""

from __future__ import annotations

import pickle
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

NAMES = {
    ("torch.distributed.checkpoint.metadata", name)
    for name in (
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    )
} | {
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
    ("torch", "Size"),
    ("collections", "OrderedDict"),
    ("pathlib", "Path"),
    ("pathlib", "PosixPath"),
    ("pathlib", "WindowsPath"),
    ("pathlib._local", "PosixPath"),
    ("pathlib._local", "WindowsPath"),
}


class ShardReader(FileSystemReader):
    """torch's reader, whose index may hold tensors' descriptions only.

    An entry that is no tensor would be unpickled by torch, so it is refused too; ours have none.
    """

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index.

        Raises:
            ValueError: if it names anything else, or is damaged.
        """
        path = self._get_metadata_path(kwargs.get("rank"))
        with self.fs.create_stream(path, "rb") as stream:
            try:
                metadata: Metadata = _Index(stream).load()
                tensors = list(metadata.state_dict_metadata.values())
            except FileNotFoundError:
                raise
            except Exception as error:  # pickle raises many kinds for a damaged or hostile file
                reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
                raise ValueError(f"{path}: refused, not an index of tensors ({reason})") from error
        if not all(type(entry) is TensorStorageMetadata for entry in tensors):
            raise ValueError(f"{path}: refused, it lists more than tensors")
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


class _Index(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and isinstance(found := vars(torch).get(name), (torch.dtype, torch.layout)):
            return found
        if (module, name) not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)
