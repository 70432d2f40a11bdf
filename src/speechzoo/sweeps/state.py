"""What a sweep has done: one JSON file in its folder, rewritten whole whenever a trial changes."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from speechzoo.system.files import write_json

FILE = "sweep.json"


@dataclass
class Trial:
    """One setting of the parameters and what became of it."""

    number: int
    values: dict[str, Any]
    state: Literal["waiting", "running", "finished", "failed"] = "waiting"
    command: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0  # wall time of all attempts that ended
    exit_code: int | None = None  # negative: the signal that ended it
    error: str = ""  # last lines of stderr of a failed trial
    metric: float | None = None  # last value of the sweep's metric
    pid: int | None = None  # while it runs

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"trial_{self.number:03d}"


class SweepState:
    """The trials of a sweep, kept in `folder/sweep.json`.

    Args:
        folder: of the sweep.
        settings: plain data that decides which trials there are (the sweep file's content and the seed).

    Raises:
        ValueError: if the folder holds a sweep with other settings, or its file is damaged.
    """

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        self.folder, self.settings = folder, json.loads(json.dumps(settings, default=str))
        self.path = folder / FILE
        self._lock = threading.RLock()
        self.trials: list[Trial] = []
        if self.path.is_file():
            before, self.trials = read_state(self.path)
            old, new = _deciding(before), _deciding(self.settings)
            if changed := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
                raise ValueError(
                    f"{folder} holds a sweep whose {', '.join(changed)} differ from what is asked: "
                    "give another --out, or delete the folder"
                )

    def add(self, values: dict[str, Any]) -> Trial:
        """A new trial."""
        with self._lock:
            self.trials.append(Trial(len(self.trials), values))
            self.save()
            return self.trials[-1]

    def save(self) -> None:
        """Write the file; it appears whole or not at all."""
        with self._lock:
            content = {"settings": self.settings, "trials": [asdict(trial) for trial in self.trials]}
            write_json(self.path, content, sync=True)


def _deciding(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without those that may change in a sweep that is continued: how many trials, and what it is called."""
    sweep = settings.get("sweep")
    if not isinstance(sweep, dict):
        return settings
    left = {key: value for key, value in sweep.items() if key not in ("run_cap", "name", "description")}
    return {**settings, "sweep": left}


def read_state(path: Path) -> tuple[dict[str, Any], list[Trial]]:
    """Settings and trials of a `sweep.json`.

    Raises:
        ValueError: if the file is damaged; the message names it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return content["settings"], [Trial(**trial) for trial in content["trials"]]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the state of a sweep ({error})") from error
