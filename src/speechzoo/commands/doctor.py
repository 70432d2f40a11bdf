"""`speechzoo doctor --config ...`: examines a training run without training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Trainer

from speechzoo.callbacks import Doctor, FreeFrozen, Preflight
from speechzoo.callbacks.doctor import Examined
from speechzoo.callbacks.of_trainer import callbacks_of, set_callbacks
from speechzoo.commands.training import ZooCLI, run
from speechzoo.doctor import memory
from speechzoo.doctor.plan import Machine, Plan, Setting, plan, table
from speechzoo.models import SpeechLLM
from speechzoo.system.files import write_json
from speechzoo.training import FSDP2Strategy


class WithoutRunning(ZooCLI):
    """Makes model, data and trainer of `fit`, and leaves them alone."""

    def _run_subcommand(self, subcommand: str) -> None:
        pass


class WithoutTrainer(WithoutRunning):
    """Makes model and data of `fit`; a trainer would look for devices that are not there."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        return None


def setting_of(trainer: dict[str, Any]) -> Setting:
    """What the Trainer's arguments, its parts being made, say about memory."""
    strategy: Any = trainer.get("strategy") or "auto"
    replicas = 1
    if isinstance(strategy, FSDP2Strategy):
        strategy, replicas = "fsdp2", strategy.replicate_size
    elif not isinstance(strategy, str):
        strategy = "ddp" if "DDP" in type(strategy).__name__ else "auto"
    frees = any(isinstance(callback, FreeFrozen) for callback in trainer.get("callbacks") or [])
    precision, accumulate = str(trainer.get("precision") or "32-true"), int(trainer.get("accumulate_grad_batches") or 1)
    precision = {"bf16": "bf16-mixed", "16": "16-mixed"}.get(precision, precision)  # Lightning's short forms
    return Setting(strategy.partition("_")[0], replicas, precision, accumulate, frees)


def fits(
    arguments: Sequence[str],
    machines: Sequence[str],
    positions: int | None = None,
    answer: int | None = None,
    json: str | None = None,
) -> bool:
    """Print what the run that arguments of `fit` describe needs on some machines; returns whether it fits on all.

    Neither weights nor data are read.

    Args:
        machines: as `Machine.parse` reads them.
        positions, answer: of the longest row and of an answer, see `plan`.
        json: file for the figures.

    Raises:
        ValueError: if a machine is none, or the model is no speech LLM.
    """
    wanted = [Machine.parse(text) for text in machines]
    cli = run(["fit", *arguments], WithoutTrainer)
    if not isinstance(cli.model, SpeechLLM):
        raise ValueError(f"the doctor knows speech LLMs, not a {type(cli.model).__name__}")
    plans = plan(cli.model, setting_of(cli.config_init["fit"]["trainer"]), cli.datamodule, wanted, positions, answer)
    if json is not None:
        write_json(json, [one.as_dict() for one in plans])
    print(table(plans))
    for one in plans:
        if not one.fits:
            print(one.check())
    return all(one.fits for one in plans)


def examine(
    arguments: Sequence[str], json: str | None, positions: int | None = None, answer: int | None = None
) -> bool:
    """Look at the run that arguments of `fit` describe; returns whether there is an error in it.

    Args:
        json: file for the findings.
        positions, answer: of the longest row and of an answer, for the memory that is needed; see `plan`.

    Raises:
        ValueError: before any weight is loaded, if weights, gradients and moments alone do not fit into the devices.
    """
    cli = run(["fit", *arguments], WithoutRunning)
    trainer, data = cli.trainer, cli.datamodule
    doctor = next(callback for callback in callbacks_of(trainer) if isinstance(callback, Doctor))
    if isinstance(cli.model, SpeechLLM):
        _say_memory(trainer, cli.model, setting_of(cli.config_init["fit"]["trainer"]), data, positions, answer)
    doctor.enabled = doctor.only = doctor.verbose = True
    doctor.json = json or doctor.json
    # Nothing is written but the findings: no logger, no checkpoint, no config.
    set_callbacks(trainer, [doctor, *(one for one in callbacks_of(trainer) if isinstance(one, Preflight))])
    trainer.loggers, trainer.num_sanity_val_steps = [], 0
    # Filling caches may take hours; the path without is looked at.
    for cache in ("feature_cache", "state_cache", "teacher_cache"):
        if hasattr(data, cache):
            setattr(data, cache, None)
    try:
        trainer.fit(cli.model, data)
    except Examined as done:
        return done.examination.failed
    raise ValueError("trainer.max_steps or max_epochs lets this run do no step: there is nothing to examine")


def _say_memory(
    trainer: Trainer, model: SpeechLLM, setting: Setting, data: Any, positions: int | None, answer: int | None
) -> None:
    device = trainer.strategy.root_device
    there = memory.device_bytes(device, getattr(trainer.strategy, "num_processes", 1))
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    here = Machine(f"{trainer.world_size} x {name}", trainer.world_size, there)
    try:
        found: Plan = plan(model, setting, data, [here], positions, answer)[0]
    except Exception as error:  # parts of other people may do anything with numbers that are not there
        print(f"memory: not worked out beforehand ({(str(error).splitlines() or [''])[0][:200]})")
        return
    print(table([found]))
    finding = found.memory.check()[0]
    if finding.level == "error":
        raise ValueError(f"{finding.text} -> {finding.advice}")
    if not found.fits:  # for the longest rows that the settings allow; whether the data has such is seen below
        print(found.check())
