"""Files that appear whole or not at all, whatever happens to the process that writes them or to the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a quota, a limit on the size of a file
DAY = 86_400.0
PART = re.compile(r"\.(?P<owner>.+)\.(?P<pid>\d+)\.[0-9a-f]{8}\.part")
_cleared: set[Path] = set()

LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\x85\u2028\u2029"}
"""Characters that JSON leaves as they are and some readers take for the end of a line."""


class DiskFullError(OSError):
    """There is too little room; the text says how much is needed and how much is free."""


def write_atomically(path: str | Path, content: bytes | str, sync: bool = False) -> None:
    """Write a file, and its folder if there is none; no other process ever sees half of it.

    Args:
        content: text is written as UTF-8.
        sync: wait until the content is on the disk, so that it outlives a power cut too.

    Raises:
        DiskFullError: if there is too little room; what was there stays.
        OSError: if the file cannot be written for another reason; what was there stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent not in _cleared:
        _cleared.add(path.parent)
        clear_parts(path.parent)
    data = content.encode() if isinstance(content, str) else content
    part = part_beside(path)
    with telling_room(path, len(data)):
        try:
            with part.open("wb") as file:
                file.write(data)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise


def write_json(path: str | Path, value: Any, sync: bool = False) -> None:
    """Write a value as indented JSON; see `write_atomically`."""
    write_atomically(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n", sync)


def without_nan(value: Any) -> Any:
    """Plain data with null for numbers that are not finite, which JSON does not know."""
    if isinstance(value, dict):
        return {str(key): without_nan(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_jsonl(path: str | Path, records: Iterable[Any], sync: bool = False) -> None:
    """Write one JSON record a line; see `write_atomically`."""
    write_atomically(path, "".join(json_line(record) for record in records), sync)


def json_line(record: Any) -> str:
    """A record as a line of JSONL, whatever characters it holds: none of them ends the line or cannot be encoded."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half of a character
        line = json.dumps(record)
    return line.translate(LINE_ENDS) + "\n"


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Numbers (from 1) and text of the lines of a JSONL file that are not empty.

    `str.splitlines` would also cut at characters such as U+2028, which JSON allows in a text.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8; the message names it.
    """
    with Path(path).open(encoding="utf-8-sig", newline="\n") as lines:
        try:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}: not a text in UTF-8 ({error})") from error


def load_json(file: Path) -> Any:
    """Any JSON, with a byte-order mark or without.

    Raises:
        FileNotFoundError, ValueError: one line that names the file.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; see `load_json`."""
    data = load_json(file)
    if not isinstance(data, dict):
        raise ValueError(f"{file}: holds {type(data).__name__}, not an object")
    return data


def cut_half_line(path: Path) -> bool:
    """Cut off what a killed writer or a full disk left after the last line's end; whether there is such a file."""
    if not path.is_file():
        return False
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        end = file.tell()
        while end and file.seek(end - 1) is not None and file.read(1) != b"\n":
            end -= 1
        file.truncate(end)
    return True


def read_jsonl(path: str | Path) -> list[Any]:
    """The records of a JSONL file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not UTF-8, or a line is no JSON; the message names file and line.
    """
    records = []
    for number, line in read_lines(path):
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from error
    return records


def part_beside(path: Path) -> Path:
    """A name for what is to become `path`, while it is being written; it tells whose it is (see `clear_parts`)."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")


def clear_parts(folder: Path) -> None:
    """Delete the half files and folders (`part_beside`) that killed processes left in a folder.

    What a process of another machine left is deleted when it is a day old.
    """
    with suppress(OSError):
        for part in folder.glob(".*.part"):
            if (found := PART.fullmatch(part.name)) is None:
                continue
            with suppress(OSError):
                ours = found["owner"].endswith(f".{socket.gethostname()}")
                if not is_running(int(found["pid"])) if ours else time.time() - part.stat().st_mtime > DAY:
                    discard(part)


def is_running(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def discard(path: Path) -> None:
    """Delete a file or folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_room(folder: Path, need: int, what: str) -> None:
    """Refuse to begin what will not fit.

    Args:
        need: bytes that will be written in the folder.
        what: the file or files, for the message.

    Raises:
        DiskFullError: if fewer are free.
    """
    if need > shutil.disk_usage(_existing(folder)).free:
        raise DiskFullError(_no_room(folder, need, what))


@contextmanager
def telling_room(path: Path, need: int | None) -> Iterator[None]:
    """Turns the errors of a full disk, raised by whatever library writes, into one that says what was needed.

    Args:
        path: what is being written; the block itself takes its half away.
        need: its size in bytes, None where it is not known.

    Raises:
        DiskFullError: instead of those errors.
    """
    try:
        yield
    except DiskFullError:
        raise
    except Exception as error:
        if (reason := _reason(error)) is None:
            raise
        raise DiskFullError(_no_room(path.parent, need, str(path), reason)) from error


def _reason(error: BaseException | None) -> str | None:
    while error is not None:
        for number in FULL:
            # A text is all that some libraries give.
            if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
                return os.strerror(number)
        if "unexpected pos" in str(error):  # all that torch tells of a write that failed
            return "writing failed half way"
        error = error.__cause__ or error.__context__
    return None


def _no_room(folder: Path, need: int | None, what: str, reason: str = os.strerror(errno.ENOSPC)) -> str:
    needed = "" if need is None else f"at least {size(need)} needed, "
    free = size(shutil.disk_usage(_existing(folder)).free)
    return f"{what}: {reason}: {needed}{free} free in {folder}; make room there (what was there before is kept)"


def size(number: float) -> str:
    """Bytes as a text."""
    for unit in ("bytes", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())


def keep_inputs(outputs: Iterable[str | Path], inputs: Iterable[str | Path]) -> None:
    """Refuse to write over what is read, by whatever name: links, relative paths, another spelling.

    Raises:
        ValueError: naming the first output that is one of the inputs.
    """
    read = [Path(path).expanduser() for path in inputs]
    for output in (Path(path).expanduser() for path in outputs):
        for path in read:
            if same_file(output, path):
                raise ValueError(
                    f"{output}: is also an input ({path}), which would be overwritten: name another output"
                )


def same_file(one: Path, other: Path) -> bool:
    """Whether two paths name one file, hard links included; those of files that are not there by their folders."""
    try:
        return one.samefile(other)
    except (OSError, ValueError):
        return os.path.realpath(one) == os.path.realpath(other)


def sha256(file: Path) -> str:
    """Hash of a file, 64 hex digits, read in pieces."""
    held = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            held.update(block)
    return held.hexdigest()
