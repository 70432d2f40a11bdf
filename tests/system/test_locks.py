"""One process has a folder; the second is told who, and a death, even by SIGKILL, lets it go."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from speechzoo.system.locks import claim

HOLD = """
import os, sys, time
from speechzoo.system.locks import claim
held = claim(sys.argv[1], "speechzoo fit")
if len(sys.argv) > 2:  # children that were forked: one ends and must not let go, one outlives and must not hold on
    child = os.fork()
    if not child:
        held.release()
        sys.exit()
    os.waitpid(child, 0)
    begun = os.pipe()
    if not os.fork():
        os.close(1)
        os.write(begun[1], b"!")  # it has let go by now; its parent could be killed before
        time.sleep(5)
        sys.exit()
    os.read(begun[0], 1)
print("held", flush=True)
time.sleep(60)
"""


def hold(folder: Path, *more: str) -> subprocess.Popen:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder), *more], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("more", [(), ("fork",)], ids=["plain", "forked"])
def test_the_second_process_is_told_who_holds_the_folder(tmp_path: Path, more: tuple[str, ...]) -> None:
    folder = tmp_path / "new" / "run"
    process = hold(folder, *more)
    try:
        told = (
            rf"in use by process {process.pid} on {re.escape(socket.gethostname())} since 20\d\d-.* \(speechzoo fit\)"
        )
        for _ in range(2):  # asking does not wear the lock off
            with pytest.raises(ValueError, match=re.escape(f"{folder}: ") + told):
                claim(folder, "speechzoo fit")
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    claim(folder, "speechzoo fit").release()


def test_what_is_let_go_is_free(tmp_path: Path) -> None:
    held = claim(tmp_path, "speechzoo sweep")
    assert claim(tmp_path, "speechzoo sweep") is held  # of one process
    held.release()
    held.release()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    process = hold(tmp_path)
    with pytest.raises(ValueError, match=f"process {process.pid} "):
        claim(tmp_path, "speechzoo sweep")
    process.kill()
    process.wait()
