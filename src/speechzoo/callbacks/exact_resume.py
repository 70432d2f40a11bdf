"""What a continued run needs besides Lightning's own state to end with the bits of the unbroken one."""

from __future__ import annotations

import math
import os
import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loops.fit_loop import RestartStage
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import distributed as dist
from torch.optim.lr_scheduler import LambdaLR

from speechzoo.system.ranks import world_size
from speechzoo.training.schedule import COUNTS


class ExactResume(Callback):
    """Keeps random states in checkpoints, and checkpoints out of the middle of an accumulation.

    Part of every `speechzoo fit`. Epochs are counted from the batches done. The states of Python's, NumPy's and
    torch's generators, of every process, are set again right before the first batch of a continued run, so that nothing
    that is drawn while it starts counts; with another number of processes only those that there were go on.

    The rate of a continued run is that of its schedule as it is now, which may be longer than the checkpoint's.

    A checkpoint between two micro-batches of a step lacks the gradients so far. Lightning's `ModelCheckpoint` would
    write one after a resume, as it forgets that it has saved this step: it is told. Others are warned of.
    """

    def __init__(self) -> None:
        self._saved: list[dict[str, Any]] | None = None
        self._lengths: list[dict[str, Any]] = []  # of the checkpoint's schedules, where they hold them

    def state_dict(self) -> dict[str, Any]:
        """Collective: checkpoints are made by all processes, and written by one."""
        states: list[Any] = [states_now()]
        if world_size() > 1:
            states = [None] * world_size()
            dist.all_gather_object(states, states_now())
        return {"ranks": states, "seed": os.environ.get("PL_GLOBAL_SEED")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._saved = state_dict["ranks"]
        before, now = state_dict.get("seed"), os.environ.get("PL_GLOBAL_SEED")
        if before and now and before != now:
            rank_zero_warn(
                f"seed_everything is {now}, but this run goes on with the random numbers of the checkpoint, whose seed "
                f"was {before}: to train with another, start a new run"
            )

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take the number of steps out of the states of torch's schedules, which would replace this run's."""
        states = checkpoint.get("lr_schedulers", ())
        self._lengths = [{name: state.pop(name) for name in COUNTS if name in state} for state in states]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:
            _count_epochs(trainer)
            for config, before in zip(trainer.lr_scheduler_configs, self._lengths, strict=False):
                _set_rate(config.scheduler, before)
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, ModelCheckpoint) and trainer.global_step:
                callback._last_global_step_saved = trainer.global_step

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING and trainer.fit_loop.epoch_loop._should_accumulate():
            rank_zero_warn(
                f"a checkpoint in the middle of step {trainer.global_step + 1}: the gradients of its first "
                "micro-batches are lost on a resume. Let trainer.val_check_interval be a multiple of "
                "accumulate_grad_batches"
            )

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        saved, self._saved = self._saved, None
        continued = saved is not None and bool(trainer.lr_scheduler_configs)
        if continued and trainer.estimated_stepping_batches <= trainer.global_step:
            rank_zero_warn(
                f"the schedule of the learning rate is that of {trainer.estimated_stepping_batches} steps, and "
                f"this run goes on from step {trainer.global_step}: the rest is trained with its last rate. Give "
                "more trainer.max_steps or max_epochs, or the batch size and accumulation of before"
            )
        if saved is not None and trainer.global_rank < len(saved):
            set_states(saved[trainer.global_rank])


def _count_epochs(trainer: Trainer) -> None:
    """Count epochs from the batches done, and begin the next one where the last is complete.

    Lightning goes on from a checkpoint of an epoch's end with an epoch that has no batch; what it saves in the one
    after says that this epoch is over, and the next resume drops the rest of it.
    """
    # Lightning says of its counters only that they are trackers of some kind.
    fit: Any = trainer.fit_loop
    epoch: Any = fit.epoch_loop
    batches, number = epoch.batch_progress, trainer.num_training_batches
    if not math.isfinite(number) or vars(trainer).get("overfit_batches"):
        return
    done, rest = divmod(batches.total.processed, int(number))
    if batches.current.ready % number != rest:  # the epochs before had another length
        return
    for progress in (fit.epoch_progress.total, fit.epoch_progress.current):
        progress.ready = progress.started = done + (rest > 0)
        progress.processed = progress.completed = done
    if rest:
        fit._restart_stage = RestartStage.RESTARTED_MID_EPOCH
        return
    fit.reset_restart_stage()
    epoch.reset_restart_stage()
    epoch.restarting = False
    epoch._batches_that_stepped = trainer.global_step
    batches.total.completed = batches.total.processed
    batches.is_last_batch = False


def _set_rate(schedule: Any, before: dict[str, Any]) -> None:
    """Give the optimizer the rate of this step: the restored one was worked out for the length of the run before."""
    if isinstance(schedule, LambdaLR):
        rates = [base * f(schedule.last_epoch) for base, f in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)]
    elif any(getattr(schedule, name) != value for name, value in before.items()):
        rates = getattr(schedule, "_get_closed_form_lr", schedule.get_last_lr)()
    else:
        return
    for group, rate in zip(schedule.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = list(rates)


def states_now() -> dict[str, Any]:
    """The states of all generators, as plain data and tensors."""
    version, numbers, rest = random.getstate()
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    states = {
        "python": [version, list(numbers), rest],
        "numpy": [kind, [int(key) for key in keys], int(position), int(has_gauss), float(gauss)],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_states(states: dict[str, Any]) -> None:
    """Set what `states_now` gave."""
    version, numbers, rest = states["python"]
    random.setstate((version, tuple(numbers), rest))
    kind, keys, *others = states["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *others))
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
