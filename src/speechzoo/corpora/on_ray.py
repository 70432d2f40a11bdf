"""All shards of a data set as tasks of a Ray cluster; each is the same command with its `--shard`."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

ADVICE = "--ray needs Ray: pip install 'speechzoo[ray]', on every machine of the cluster"


def run_shards(shard: Callable[[str], int], number: int, gpu: bool, folder: Path) -> None:
    """Call `shard("i/number")` for all i, as many at a time as the cluster has room for.

    The cluster is that of $RAY_ADDRESS; without it one is started on this machine. A task takes one CPU of Ray's count
    and, with `gpu`, one GPU. All machines have to see this working directory, the sources and the data set's folder
    under the same paths. A task whose machine is lost is started again and goes on where it stopped.

    Args:
        shard: makes one shard, in this working directory; returns an exit status.
        folder: of the data set.

    Raises:
        ImportError: Ray is not installed.
        RuntimeError: some shards failed; the others are finished.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise ImportError(ADVICE) from error
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None)
    try:
        task = ray.remote(num_cpus=1, num_gpus=int(gpu))(_there)
        waiting = {task.remote(shard, f"{index}/{number}", str(Path.cwd())): index for index in range(number)}
        failed: dict[int, str] = {}
        while waiting:
            (done,), _ = ray.wait(list(waiting), num_returns=1)
            index = waiting.pop(done)
            if problem := _problem(ray, done):
                failed[index] = problem
            print(f"shard {index}/{number}: {problem or 'done'}", flush=True)
    finally:
        if started:
            ray.shutdown()
    if failed:
        told = "; ".join(f"{index}/{number}: {why}" for index, why in sorted(failed.items()))
        raise RuntimeError(
            f"{folder}: {len(failed)} of {number} shards failed ({told}); the same command does them again"
        )


def _problem(ray: Any, task: Any) -> str:
    """Why a task failed, in one line; empty if it did not."""
    try:
        code = ray.get(task)
    except Exception as error:  # a lost machine, a killed worker, or what the command did not foresee
        return " ".join(str(error).split())[-300:]
    return f"exit status {code}, its messages are above" if code else ""


def _there(shard: Callable[[str], int], number: str, folder: str) -> int:
    """One shard on whatever machine; relative paths mean what they mean where the command was given."""
    os.chdir(folder)
    return shard(number)
