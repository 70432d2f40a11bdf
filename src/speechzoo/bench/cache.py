"""What the caches of frozen states save: the first steps of a recipe with and without them, on its own data."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import OmegaConf

from speechzoo.system.files import read_json, write_json
from speechzoo.system.terminal import tell_error

CACHES = ("feature_cache", "state_cache", "teacher_cache")
ARMS = {"none": (), "features": CACHES[:1], "states": CACHES[:2], "teacher": (CACHES[0], CACHES[2])}
"""Arm -> caches in use. States are computed from cached features where a recipe has both."""


class StepCost(Callback):
    """Writes what the batches of a training cost: CPU seconds of this process, all its threads, loading included.

    Args:
        file: for the figures.
        warm_up: batches at the start that do not count.
    """

    def __init__(self, file: str, warm_up: int = 2) -> None:
        self.file, self.warm_up = Path(file), warm_up
        self.times: list[float] = []
        self.losses: list[float] = []
        self.loaders = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.loaders = time.process_time()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Loaders, and with them the caches, are made between these two."""
        self.times = [time.process_time()]
        self.loaders = self.times[0] - self.loaders

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.times.append(time.process_time())
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        start = self.times[self.warm_up]
        counted = len(self.times) - 1 - self.warm_up
        figures = {"step": (self.times[-1] - start) / counted, "loaders": self.loaders, "losses": self.losses}
        write_json(self.file, figures)


def caches_of(recipe: Path) -> list[str]:
    """The caches that a recipe uses.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it uses none.
    """
    if not recipe.is_file():
        raise FileNotFoundError(f"{recipe}: no such recipe")
    content: Any = OmegaConf.to_container(OmegaConf.load(recipe), resolve=False)
    settings = content.get("data", {}).get("init_args", {})
    found = [name for name in CACHES if settings.get(name)]
    if not found:
        raise ValueError(f"{recipe}: uses none of {', '.join(f'data.{name}' for name in CACHES)}")
    return found


def arguments(recipe: Path, caches: Sequence[str], folder: Path, steps: int, warm_up: int) -> list[str]:
    """`speechzoo fit` of a recipe for some steps, with those of its caches in use that are named, in a folder."""
    cost = {"class_path": f"{__name__}.StepCost", "init_args": {"file": str(folder / "cost.json"), "warm_up": warm_up}}
    given = ["fit", f"--config={recipe}", f"--trainer.default_root_dir={folder}", f"--trainer.max_steps={steps}"]
    given += [f"--trainer.callbacks={json.dumps([cost])}", "--trainer.logger=false", "--doctor.enabled=false"]
    given += ["--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    given += ["--trainer.limit_val_batches=0", "--trainer.val_check_interval=null"]
    for name in caches_of(recipe):
        given.append(f"--data.init_args.{name}={folder / name if name in caches else 'null'}")
    return given


def run(given: Sequence[str]) -> None:
    """`speechzoo` with these arguments, in a process of its own.

    Raises:
        RuntimeError: with the last lines it wrote, if it fails.
    """
    done = subprocess.run([sys.executable, "-m", "speechzoo", *given], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError("\n".join(done.stderr.splitlines()[-8:]) or f"exit code {done.returncode}")


def measure(recipe: Path, steps: int, warm_up: int) -> dict[str, dict[str, Any]]:
    """Figures of a recipe by arm: `cpu_seconds` of a step, and with caches also `gain` (how many times less that is),
    `build_cpu_seconds`, `megabytes`, `pays_after_steps` (None: never) and `loss_change` (relative, of the first batch:
    cached states are computed and kept in another precision).

    All arms see the same batches.
    """
    has = caches_of(recipe)
    found: dict[str, dict[str, Any]] = {}
    plain: dict[str, Any] = {}
    for arm, caches in ARMS.items():
        if caches and caches[-1] not in has:
            continue
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            run(arguments(recipe, caches, folder, steps + warm_up, warm_up))
            told = read_json(folder / "cost.json")
            size = sum(f.stat().st_size for c in caches for f in (folder / c).rglob("*") if f.is_file())
        found[arm] = {"cpu_seconds": told["step"]}
        if not caches:
            plain = told
            continue
        build, saved = told["loaders"] - plain["loaders"], plain["step"] - told["step"]
        found[arm] |= {
            "gain": plain["step"] / told["step"],
            "build_cpu_seconds": build,
            "megabytes": size / 1e6,
            "pays_after_steps": max(0, round(build / saved)) if saved > 0 else None,
            "loss_change": abs(told["losses"][0] / plain["losses"][0] - 1),
        }
    return found


def main(args: argparse.Namespace) -> int:
    """`speechzoo bench cache`; returns the exit code."""
    try:
        for recipe in args.recipes:
            caches_of(recipe)
    except (FileNotFoundError, ValueError) as error:
        return tell_error(error)
    figures: dict[str, Any] = {
        "machine": f"{platform.machine()} {platform.system()}, {os.cpu_count()} CPUs",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "steps": args.steps,
        "recipes": {},
    }
    for recipe in args.recipes:
        try:
            found = measure(recipe, args.steps, args.warm_up)
        except RuntimeError as error:
            print(f"speechzoo: {recipe}: {error}", file=sys.stderr)
            return 1
        figures["recipes"][str(recipe)] = found
        print(f"{recipe}: {found['none']['cpu_seconds']:.2f} CPU s a step without caches")
        for arm, told in found.items():
            if arm != "none":
                after = told["pays_after_steps"]
                print(
                    f"  {arm}: {told['cpu_seconds']:.2f} CPU s, {told['gain']:.2f} times less; built in "
                    f"{told['build_cpu_seconds']:.0f} CPU s, {told['megabytes']:.0f} MB; pays after "
                    f"{'no number of' if after is None else after} steps; losses differ by {told['loss_change']:.1e}",
                    flush=True,
                )
        if args.json:
            write_json(args.json, figures)
    return 0
