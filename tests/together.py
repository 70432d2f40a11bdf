"""Ranks of a test, forked from a process that has imported everything once: each would else take seconds to start."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from torch.multiprocessing import start_processes


def run_together(work: Callable[..., None], args: tuple[Any, ...], ranks: int = 2) -> None:
    """Call `work(rank, *args)` in a process for each rank and wait for all; one that fails raises here.

    They get the environment that there was when the first ones started: what a test sets in it goes into `args`.
    """
    multiprocessing.set_forkserver_preload(["speechzoo.commands.training"])
    start_processes(work, args=args, nprocs=ranks, start_method="forkserver")
