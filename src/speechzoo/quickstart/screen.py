"""What is seen while stages run: a live line for each on a terminal, a line at its end where there is none."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from speechzoo.system.terminal import last_lines


class Screen:
    """The live display of stages, which are processes of their own and write into a log file each.

    Two stages that run at the same time would overwrite each other's bars, and bars in a file are a line a redraw.

    Args:
        logs: folder of the log files, `NAME.log`.
    """

    def __init__(self, console: Console, logs: Path) -> None:
        self.console, self.logs = console, logs
        self._running: dict[str, tuple[str, float]] = {}  # title and start of each stage

    def log(self, name: str) -> Path:
        """File that a stage writes into."""
        return self.logs / f"{name}.log"

    @contextmanager
    def live(self) -> Iterator[None]:
        """The display, as long as it is needed; none where there is no terminal."""
        if not self.console.is_terminal:
            yield
            return
        with Live(get_renderable=self.table, console=self.console, refresh_per_second=2, transient=True):
            yield

    @contextmanager
    def shown(self, name: str, title: str) -> Iterator[None]:
        """A line for a stage while it runs."""
        self._running[name] = title, time.monotonic()
        try:
            yield
        finally:
            del self._running[name]

    def table(self) -> Table:
        """What runs, for how long, and what each said last."""
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(no_wrap=True, ratio=1)
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, ratio=1, overflow="ellipsis")
        for name, (title, start) in list(self._running.items()):
            table.add_row(
                f"[bold]▶ {title}[/]", f"{time.monotonic() - start:.0f} s", escape(last_lines(self.log(name)))
            )
        return table


def write_into(log: Path) -> None:
    """All output of this process, of libraries and of the processes it starts, goes to a file from here on."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)


class Counter(Progress):
    """Counts with the remaining time: bars on a terminal, else a line each twentieth of the way."""

    def __init__(self, console: Console) -> None:
        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self._told: dict[TaskID, int] = {}

    def update(self, task_id: TaskID, **fields: Any) -> None:
        """Rich's, and the line."""
        super().update(task_id, **fields)
        task = next(task for task in self.tasks if task.id == task_id)
        if not self.disable or not task.total:
            return
        if (share := int(20 * task.completed / task.total)) > self._told.get(task_id, 0):
            self._told[task_id] = share
            self.console.print(f"{task.description} {task.completed:.0f}/{task.total:.0f}")
