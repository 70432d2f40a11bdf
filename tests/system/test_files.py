"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from speechzoo.system.files import (
    DiskFullError,
    check_room,
    part_beside,
    read_jsonl,
    telling_room,
    write_atomically,
    write_json,
    write_jsonl,
)


def test_what_was_there_stays_where_writing_fails(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.json"
    write_json(file, {"é": 1}, sync=True)
    assert json.loads(file.read_text(encoding="utf-8")) == {"é": 1} and file.read_bytes().endswith(b"}\n")
    with pytest.raises(TypeError):
        write_atomically(file, 3.0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        write_jsonl(file, [{"a": 1}, {"b": object()}])
    assert json.loads(file.read_text(encoding="utf-8")) == {"é": 1}
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]  # no half files either
    write_jsonl(file, ({"n": n} for n in range(3)))
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [0, 1, 2]


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """Within it the system refuses this process files over `size` bytes, as where a disk is full.

    Not a fixture: the limit also holds for the file that pytest itself writes its output to, between the phases of a
    test.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_no_half_file_and_says_what_was_needed(tmp_path: Path, monkeypatch) -> None:
    file = tmp_path / "a.bin"
    write_atomically(file, b"before")
    told_of = r"a\.bin: File too large: at least 20 kB needed, .* free in"
    with pytest.raises(DiskFullError, match=told_of) as told, files_at_most(10_000):
        write_atomically(file, b"x" * 20_000)
    assert "\n" not in str(told.value) and isinstance(told.value, OSError)
    assert file.read_bytes() == b"before" and [path.name for path in tmp_path.iterdir()] == ["a.bin"]

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_500_000))
    with pytest.raises(DiskFullError, match="No space left on device: at least 5 bytes needed, 2 MB free in"):
        write_atomically(file, b"after", sync=True)
    assert file.read_bytes() == b"before" and [path.name for path in tmp_path.iterdir()] == ["a.bin"]


def test_texts_of_other_libraries_count_and_other_errors_pass(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="out: No space left on device: at least 3 bytes needed"):  # safetensors
        with telling_room(tmp_path / "out", 3):
            raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(PermissionError, match="not yours"), telling_room(tmp_path / "out", 3):
        raise PermissionError(errno.EACCES, "not yours")
    check_room(tmp_path / "not" / "there" / "yet", 1, "a")
    with pytest.raises(DiskFullError, match=r"a: No space left on device: at least 1000000000\.0 GB needed"):
        check_room(tmp_path / "not" / "there" / "yet", 10**18, "a")
    assert not (tmp_path / "not").exists()


def test_what_killed_writers_left_goes_and_what_others_write_stays(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target, host = tmp_path / "a.json", socket.gethostname()
    mine = part_beside(target)
    left = {
        "mine": mine,
        "killed": tmp_path / f".a.json.{host}.{dead.pid}.0123abcd.part",
        "folder": tmp_path / f".out.{host}.{dead.pid}.0123abcd.part",
        "elsewhere": tmp_path / f".a.json.other.host.{dead.pid}.0123abcd.part",
        "elsewhere, old": tmp_path / ".a.json.other.host.1.0123abcd.part",
        "somebody's": tmp_path / ".film.mkv.part",
    }
    for name, path in left.items():
        if name == "folder":
            (path / "inside").mkdir(parents=True)
        else:
            path.write_text("half")
    for name in ("elsewhere, old", "somebody's"):
        os.utime(left[name], (1, 1))
    write_json(target, [1])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [target.name, *(left[name].name for name in ("mine", "elsewhere", "somebody's"))]
    )
    assert mine.read_text() == "half" and json.loads(target.read_text()) == [1]


KILLED = """
import os, signal, sys
from speechzoo.system import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # the last moment before the file has its name
files.write_atomically(sys.argv[1], "half" * 1000)
"""

WRITER = """
import sys
from speechzoo.system.files import write_atomically
for n in range(100):
    for name in "abc":
        write_atomically(f"{sys.argv[1]}/{name}", sys.argv[2] * 50_000)
"""


def test_a_killed_writers_file_is_not_taken_for_whole(tmp_path: Path) -> None:
    process = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "a")])
    assert process.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".a.") and left.suffix == ".part"
    write_atomically(tmp_path / "a", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_two_processes_that_write_the_same_files_do_no_damage(tmp_path: Path) -> None:
    """As two that compute one cache do: at every moment each file is the whole of what one of them wrote."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), text]) for text in "xy"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        for name in "abc":
            if (tmp_path / name).exists():
                content = (tmp_path / name).read_text()
                assert len(content) == 50_000 and len(set(content)) == 1
                seen.add(content[0])
    assert seen == {"x", "y"} and [writer.returncode for writer in writers] == [0, 0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": \n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl:3: not JSON"):
        read_jsonl(tmp_path / "a.jsonl")
