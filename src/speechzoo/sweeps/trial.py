"""One trial as a process: its command line, its environment, its output, its result."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from speechzoo.evaluation.figures import metrics_files

# Of the sweep's own process, where it trained before or is a rank itself: a trial that inherits them takes itself for
# a rank of that job, and waits for the others for ever. Lightning knows SLURM's ranks by the number of tasks.
OTHER_JOB = (
    "RANK",
    "LOCAL_RANK",
    "NODE_RANK",
    "GROUP_RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
)
CONFIG = re.compile(r"^(?:-c|--config)(?:=(.*))?$")

Started = Callable[[int], None]
Launch = Callable[[Sequence[str], Mapping[str, str], Path, Started], int]
"""(command, environment, folder, tell the process id) -> exit code."""


def launch(command: Sequence[str], environment: Mapping[str, str], folder: Path, started: Started) -> int:
    """Run a command in a process group of its own, its output appended to `stdout.log` and `stderr.log` in `folder`.

    Variables that make a process a rank of another job are not handed on.
    """
    environment = {name: value for name, value in environment.items() if name not in OTHER_JOB}
    with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
        # Its own session: Ctrl-C reaches the sweep alone, which then ends its trials in order.
        process = subprocess.Popen(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            start_new_session=True,
        )
        started(process.pid)
        return process.wait()


def end(pid: int, patience: float = 60.0) -> None:
    """End a process that `launch` started, and its ranks: SIGTERM first, SIGKILL after `patience` seconds."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            time.sleep(0.05)
            os.killpg(pid, 0)  # raises once the whole group is gone
        os.killpg(pid, signal.SIGKILL)


def run_arguments(
    command: Sequence[str], folder: Path, name: str, group: str, tags: Sequence[str], place: Mapping[str, str]
) -> list[str]:
    """What a trial's command gets in addition: its run folder, its names in W&B, the checkpoint it goes on from.

    Args:
        place: the sweep file's `project` and `entity`, as far as it names them.
    """
    arguments = [f"--name={name}", f"--trainer.default_root_dir={folder}"]
    if _last_logger(command) == "WandbLogger":
        # Keys of the last entry of a list can be given one by one; what a recipe says would beat the environment.
        arguments += [f"--trainer.logger.init_args.group={group}", f"--trainer.logger.init_args.tags={list(tags)}"]
        arguments += [f"--trainer.logger.init_args.{key}={value}" for key, value in place.items()]
    if (folder / "last.ckpt").exists():  # a file, or a folder of shards
        arguments.append(f"--ckpt_path={folder / 'last.ckpt'}")
    elif any(folder.glob("*.ckpt")):  # it was killed after `best.ckpt` and before the first `last.ckpt`
        arguments.append("--overwrite=true")
    return arguments


def wandb_environment(
    run_id: str, name: str, group: str, tags: Sequence[str], place: Mapping[str, str]
) -> dict[str, str]:
    """Environment by which all ranks of a trial belong to one W&B run, the same one when it is continued."""
    values = {"WANDB_RUN_ID": run_id, "WANDB_NAME": name, "WANDB_RUN_GROUP": group, "WANDB_TAGS": ",".join(tags)}
    values |= {f"WANDB_{key.upper()}": value for key, value in place.items()}
    return {**values, "WANDB_RESUME": "allow"}


def architecture(command: Sequence[str]) -> list[str]:
    """Tags of a command: the class of the model and of its adaptor, as far as its configs and arguments say."""
    found: dict[str, str] = {}
    for config in _configs(command):
        found["model"] = _class(_within(config, "model")) or found.get("model", "")
        found["adaptor"] = _class(_within(config, "model", "init_args", "adaptor")) or found.get("adaptor", "")
    for word in command:
        for key, option in (("model", r"model"), ("adaptor", r"model\.(?:init_args\.)?adaptor")):
            if match := re.match(rf"--{option}(?:\.class_path)?=([\w.]+)$", word):
                found[key] = match[1].rsplit(".", 1)[-1]
    return [tag for tag in found.values() if tag]


def last_values(folder: Path) -> dict[str, str]:
    """Last value of each metric in a run folder's `csv/version_*/metrics.csv`, as it stands there."""
    values = {}
    for file in metrics_files(folder):
        with file.open(newline="", encoding="utf-8") as handle:
            for row in csv.DictReader(handle):
                values.update({name: value for name, value in row.items() if name and value})
    return values


def is_alive(pid: int | None, folder: Path) -> bool:
    """Whether the process of a trial that nobody waits for any more still runs in its folder."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError, OverflowError):
        return False
    try:  # the number may be another process's by now
        return str(folder) in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return not Path("/proc/self").exists()  # no /proc here: believe the number


def _configs(command: Sequence[str]) -> list[Mapping[str, Any]]:
    """The YAML files a command names, in order; those that cannot be read are left for the trial to complain about."""
    files: list[str] = []
    for word, following in zip(command, [*command[1:], ""], strict=True):
        if match := CONFIG.match(word):
            files.append(match[1] if match[1] is not None else following)
    configs = []
    for file in files:
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(content, Mapping):
            configs.append(content)
    return configs


def _last_logger(command: Sequence[str]) -> str:
    name = ""
    for config in _configs(command):
        loggers = _within(config, "trainer", "logger")
        if isinstance(loggers, list):
            name = _class(loggers[-1]) if loggers else ""
        elif loggers is not None:
            name = _class(loggers)
    if any(word.startswith("--trainer.logger") for word in command):
        return ""  # the command has its own idea of loggers
    return name


def _within(config: Any, *keys: str) -> Any:
    """What a configuration holds under a path of keys; None where there is none."""
    for key in keys:
        config = config.get(key) if isinstance(config, Mapping) else None
    return config


def _class(part: Any) -> str:
    name = part.get("class_path") if isinstance(part, Mapping) else part
    return name.rsplit(".", 1)[-1] if isinstance(name, str) else ""
