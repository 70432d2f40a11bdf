"""Stages in processes of their own: results, errors, memory, and an end with whoever started them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from speechzoo.quickstart.apart import run_apart


def add(a: int, b: int) -> int:
    return a + b


def pid() -> int:
    return os.getpid()


def fail() -> None:
    raise ValueError("a file is missing")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait(file: str) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


def test_results_and_errors_come_back() -> None:
    assert run_apart(add, 2, 3) == 5
    assert len({os.getpid(), run_apart(pid), run_apart(pid)}) == 3
    with pytest.raises(ValueError, match="a file is missing"):
        run_apart(fail)
    with pytest.raises(RuntimeError, match="was killed"):
        run_apart(die)


@pytest.mark.slow
def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"import test_apart; test_apart.run_apart(test_apart.wait, {str(file)!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parent)
    while not (file.is_file() and file.read_text()):
        assert parent.poll() is None
        time.sleep(0.1)
    child = int(file.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not alive(child):
            return
        time.sleep(0.1)
    raise AssertionError("the stage went on alone")


def alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
