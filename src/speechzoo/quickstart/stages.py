"""Named pieces of work that are done once, survive being killed, and belong to one set of settings."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from speechzoo.system.files import read_json, write_atomically, write_json
from speechzoo.system.settings import changed


class Stages:
    """Runs stages in order and remembers in `folder/state` which are finished.

    A stage that was killed is run again from its beginning by `run`; what it had finished by itself (sound files,
    cached features, training checkpoints) it finds again.

    Args:
        folder: of the whole run.
        settings: plain data that decides the results.
        console: where progress goes.

    Raises:
        ValueError: if the folder was made with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], console: Console) -> None:
        self.state = folder / "state"
        self.state.mkdir(parents=True, exist_ok=True)
        self.console = console
        if other := changed(self.state / "settings.json", settings):
            raise ValueError(f"{folder} holds a run with other settings ({other}): give another --out, or delete it")

    def seconds(self, name: str) -> float | None:
        """Wall seconds of a finished stage, None if it is not finished."""
        marker = self.state / f"{name}.done"
        return read_json(marker)["seconds"] if marker.is_file() else None

    def run(self, name: str, title: str, work: Callable[[], Any]) -> None:
        """Do `work` unless it is finished.

        Time of earlier attempts that failed or were interrupted is counted in; a SIGKILL cannot be.
        """
        if (done := self.seconds(name)) is not None:
            self.console.print(f"[green]✓[/] {title} [dim](finished before, {done:.0f} s)[/]")
            return
        clock = self.state / f"{name}.spent"
        before = float(clock.read_text()) if clock.is_file() else 0.0
        start = time.monotonic()
        try:
            work()
        finally:
            write_atomically(clock, str(before + time.monotonic() - start))
        spent = before + time.monotonic() - start
        write_json(self.state / f"{name}.done", {"seconds": spent})
        self.console.print(f"[green]✓[/] {title} [dim]({spent:.0f} s)[/]")
