"""A sweep file, and trials that are played instead of run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import yaml

GRID = {
    "name": "small",
    "method": "grid",
    "program": "speechzoo",
    "metric": {"name": "val/loss", "goal": "minimize"},
    "parameters": {"model.lr": {"values": [0.1, 0.01, 0.001]}, "config": {"values": ["a.yaml", "b.yaml"]}},
    "command": ["${env}", "${interpreter}", "-m", "speechzoo", "fit", "${args}", "--data.seed=${seed_everything}"],
}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """`write(key=value)` is the sweep file above with other keys; None takes one out."""

    def write(**changes: object) -> Path:
        content = {key: value for key, value in {**GRID, **changes}.items() if value is not None}
        path = tmp_path / "sweep.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


class Player:
    """Stands for the processes of trials: writes what a run would have left, and fails where it is told to."""

    def __init__(self, fail: Sequence[int] = (), interrupt: Sequence[int] = ()) -> None:
        self.fail, self.interrupt = set(fail), set(interrupt)
        self.commands: list[list[str]] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path, started: Callable[[int], None]
    ) -> int:
        number = int(folder.name.removeprefix("trial_"))
        self.commands.append(list(command))
        self.environments.append(environment)
        if number in self.interrupt:
            (folder / "last.ckpt").write_text("half")
            raise KeyboardInterrupt
        if number in self.fail:
            (folder / "stderr.log").write_text("bar 10%\rbar 20%\n" + "\n".join(f"line {i}" for i in range(40)))
            return 3
        metrics = folder / "csv" / "version_0" / "metrics.csv"
        metrics.parent.mkdir(parents=True)
        metrics.write_text(f"epoch,step,train/loss,val/loss\n0,1,2.0,\n0,1,,{number + 1}\n0,3,1.5,\n0,3,,{number}.5\n")
        return 0


@pytest.fixture
def player() -> type[Player]:
    return Player
