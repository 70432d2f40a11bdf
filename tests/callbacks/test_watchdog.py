"""A run that hangs ends, and the process that the others wait for is named."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from tiny_module import TinyModule, loader

from speechzoo.callbacks import Watchdog
from speechzoo.callbacks.watchdog import EXIT_CODE, Beat, behind


class Stuck(TinyModule):
    """Process 1 never comes back from its third batch."""

    def training_step(self, batch: Any, index: int) -> Any:
        if index == 2 and self.global_rank == 1:
            time.sleep(1000)
        return super().training_step(batch, index)


def main(rank: int, port: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "LOCAL_RANK": str(rank)}
    trainer = Trainer(
        accelerator="cpu", devices=2, max_epochs=1, barebones=True, use_distributed_sampler=False,
        strategy=DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=300)),
        plugins=[LightningEnvironment()], callbacks=[Watchdog(timeout_seconds=20, beat_seconds=2)],
    )  # fmt: skip
    trainer.fit(Stuck(), loader(5))


@pytest.mark.slow
def test_two_processes_of_which_one_is_stuck() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = Path(__file__)
    paths = {"PYTHONPATH": os.pathsep.join([str(here.parent), *sys.path]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"import sys, {here.stem} as t; t.main(int(sys.argv[1]), {port})"]
    started = [
        subprocess.Popen([*command, str(rank)], env={**os.environ, **paths}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [process.communicate(timeout=900)[1] for process in started]
    assert [process.returncode for process in started] == [EXIT_CODE, EXIT_CODE], told
    assert "watchdog of rank 0: no progress for" in told[0]
    assert "rank 1 is behind (step 2, training batch 2); limit 20 s" in told[0]
    assert "rank 0 is" not in told[0] + told[1]
    assert "time.sleep" in told[1] or "training_step" in told[1]  # the stack says where


@pytest.mark.parametrize(("seconds", "ended"), [(40, False), (61, True)])
def test_a_run_that_goes_on_is_left_alone(make_trainer, monkeypatch, seconds: float, ended: bool) -> None:
    """Steps of 40 seconds are no reason for a limit of 60, however many there are; one of 61 is. The clock is ours."""
    now, codes, looks = [0.0], [], threading.Semaphore(0)

    def monotonic() -> float:
        if threading.current_thread().name == "watchdog":
            looks.release()
        return now[0]

    monkeypatch.setattr("speechzoo.callbacks.watchdog.time", SimpleNamespace(monotonic=monotonic, time=time.time))
    monkeypatch.setattr("speechzoo.callbacks.watchdog.os", SimpleNamespace(_exit=codes.append, environ=os.environ))
    watchdog = Watchdog(timeout_seconds=60, beat_seconds=0.01)

    class Slow(TinyModule):
        def training_step(self, batch: Any, index: int) -> Any:
            now[0] += seconds
            while looks.acquire(blocking=False):
                pass
            for _ in range(2):  # the second look began after the clock moved, and the first is done with
                assert looks.acquire(timeout=60)
            return super().training_step(batch, index)

    make_trainer(callbacks=[watchdog]).fit(Slow(), loader(3))
    assert set(codes) == ({EXIT_CODE} if ended else set())
    assert watchdog._thread is None and not any(thread.name == "watchdog" for thread in threading.enumerate())


def test_who_is_named() -> None:
    beats = {
        0: Beat(10, 4, "training batch 8", 100.0),
        1: Beat(9, 4, "training batch 7", 100.0),
        2: Beat(10, 4, "training batch 8", 60.0),
        3: None,
    }
    assert behind(beats, 101.0, 10.0) == (
        "rank 1 is behind (step 4, training batch 7), rank 2 is dead or stopped (last heard 41 s ago at step 4, "
        "training batch 8), rank 3 never started"
    )
    assert behind({0: beats[0]}, 101.0, 10.0).startswith("all ranks are at the same place")
    assert Beat.read(beats[1].write()) == beats[1]
    with pytest.raises(ValueError, match="less than timeout_seconds"):
        Watchdog(timeout_seconds=1, beat_seconds=2)
