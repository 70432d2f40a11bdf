"""Digests by which damage to a file is found when it is read: inside the file, so that a copy or a move keeps them.

They are XXH3 of 128 bits, which runs at the speed of memory: against accidents, not against forgers.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from xxhash import xxh3_128

BLOCK = 1 << 20
ZEROS = b"0" * 32
COMMENT = b"speechzoo xxh3-128 "  # of a zip file, followed by 32 hex digits
END, PLAIN = b"PK\x05\x06", b"\0\0"  # of a zip file: how its end record begins, and its last field without a comment
METADATA = b'"xxh3-128":"'  # of a safetensors file


class DamagedError(ValueError):
    """A file is not what was written."""


def file_digest(path: str | Path) -> str:
    """Digest of a whole file, 32 hex digits, read in pieces."""
    held = xxh3_128()
    with Path(path).open("rb", buffering=0) as file:
        _feed(held, file)
    return held.hexdigest()


def _feed(held: Any, file: Any, size: int | None = None) -> None:
    buffer = memoryview(bytearray(BLOCK))
    while (size is None or size > 0) and (count := file.readinto(buffer if size is None else buffer[:size])):
        held.update(buffer[:count])
        size = None if size is None else size - count


class SealedZip:
    """A file that `torch.save` writes to, once; `seal` then puts the digest of what it wrote into the zip's comment,
    which readers of zip files pass over.

    Args:
        file: opened for writing and reading.

    Attributes:
        error: the first error in writing, of which torch tells only that there was one.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None
        self._held = xxh3_128()

    def write(self, data: Any) -> int:
        """Called by torch, with one piece after the other."""
        try:
            count = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        self._held.update(data)
        return count

    def flush(self) -> None:
        """Called by torch."""
        try:
            self.file.flush()
        except OSError as error:
            self.error = self.error or error
            raise

    def seal(self) -> None:
        """Write the digest.

        Raises:
            ValueError: if what was written is no zip file without a comment.
        """
        self.file.seek(-22, 2)
        if self.file.read(4) != END:
            raise ValueError("a checkpoint has to be written by torch.save in its zip format")
        self.file.seek(-2, 2)
        comment = COMMENT + self._held.hexdigest().encode()
        self.file.write(len(comment).to_bytes(2, "little") + comment)


def check_zip(path: str | Path) -> None:
    """Read a file that `torch.save` wrote once, and compare it with the digest it carries.

    One without a digest (of an earlier version, or of another writer) is compared with the checksums that zip files
    keep of their entries; files of other kinds pass.

    Raises:
        DamagedError: naming the file, and what is wrong with it.
        OSError: if it cannot be read.
    """
    size = len(COMMENT) + len(ZEROS)
    with Path(path).open("rb", buffering=0) as file:
        total = file.seek(0, 2)
        tail = _last(file, 22 + size)
        comment = tail[22:]
        if tail[:4] == END and tail[20:22] == size.to_bytes(2, "little") and comment.startswith(COMMENT):
            file.seek(0)
            held = xxh3_128()
            _feed(held, file, total - size - 2)
            held.update(PLAIN)
            if held.hexdigest().encode() != comment[len(COMMENT) :]:
                raise DamagedError(_damaged(path, "its content does not match its digest"))
            return
        last = _last(file, 22)
        file.seek(0)
        if not total:
            raise DamagedError(_damaged(path, "it is empty"))
        if file.read(2) != END[:2]:
            return
    if last[:4] != END or last[20:] != PLAIN:
        raise DamagedError(_damaged(path, "its end is cut off or changed"))
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError) as error:
        raise DamagedError(_damaged(path, str(error))) from error
    if wrong is not None:
        raise DamagedError(_damaged(path, f"its entry {wrong} does not match its checksum"))


def _last(file: BinaryIO, count: int) -> bytes:
    total = file.seek(0, 2)
    file.seek(max(0, total - count))
    return file.read()


def _damaged(path: str | Path, reason: str) -> str:
    return f"{path}: damaged ({reason}): copy it again from where it is whole, or go back to an earlier one"


def sealed_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file with a digest of itself in its metadata, for `read_tensors`; anything else reads it too."""
    content = bytearray(save(dict(tensors), {METADATA[1:-3].decode(): ZEROS.decode()}))
    at = content.index(METADATA + ZEROS) + len(METADATA)
    content[at : at + len(ZEROS)] = xxh3_128(content).hexdigest().encode()
    return bytes(content)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, which is compared with its digest, if it has one.

    Raises:
        FileNotFoundError: if there is none.
        DamagedError: naming the file, and what is wrong with it.
    """
    try:
        with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            at = content.find(METADATA, 0, 8 + int.from_bytes(content[:8], "little")) + len(METADATA)
            if at >= len(METADATA):
                view = memoryview(content)
                held = xxh3_128(view[:at])
                held.update(ZEROS)
                held.update(view[at + len(ZEROS) :])
                stored = bytes(view[at : at + len(ZEROS)])
                view.release()
                if held.hexdigest().encode() != stored:
                    raise DamagedError(f"{path}: damaged (its content does not match its digest)")
        return load_file(path)
    except FileNotFoundError:
        raise
    except (SafetensorError, ValueError, OverflowError) as error:  # ValueError: an empty file cannot be mapped
        if isinstance(error, DamagedError):
            raise
        raise DamagedError(f"{path}: damaged ({error})") from error


def check_files(folder: Path, digests: Mapping[str, str], keeper: str) -> None:
    """Compare files of a folder with their digests (by path inside the folder).

    Args:
        keeper: name of the file that holds the digests, for the message.

    Raises:
        DamagedError: naming the first file that is missing or differs.
    """
    for name, digest in digests.items():
        file = folder / name
        if not file.is_file():
            raise DamagedError(f"{file}: missing, though {keeper} names it: copy the folder again")
        if file_digest(file) != digest:
            raise DamagedError(_damaged(file, f"its content does not fit {keeper}, which holds its digest"))
