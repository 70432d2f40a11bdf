"""A function in a process of its own, which ends with the one that started it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

# Imported once, by the process that the others are copied from: they start in no time.
PRELOAD = ["speechzoo.quickstart.work", "speechzoo.commands.training", "speechzoo.quickstart.examination"]


def run_apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call a module's function with picklable arguments in a new process; its result, or its exception.

    Raises:
        RuntimeError: if the process was killed, most often by the system for want of memory.
    """
    copied = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if copied else "spawn")
    if copied:
        context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, context, initializer=follow_parent) as pool:
        try:
            return pool.submit(function, *args).result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                "its process was killed, perhaps because memory ran out; the same command goes on"
            ) from error


def follow_parent() -> None:
    """End when the parent does, however it ends: nobody would wait for the results of this process."""

    parent = multiprocessing.parent_process()
    if parent is None:  # the main process follows nobody
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
