"""A clean stop when the machine is taken away: save where the run can go on exactly, then leave."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from speechzoo.callbacks.checkpoints import LastCheckpoint


class Preemption(Checkpoint):
    """On SIGTERM or SIGUSR1 finishes the optimizer step, saves `last.ckpt` and ends the fit.

    Lightning's own handling leaves between micro-batches, where gradients of an unfinished accumulation would be lost;
    this waits for the step, on all processes. Go on with `--ckpt_path last`, which starts anew if there is no
    checkpoint: the same command serves for both.

    Args:
        requeue: under SLURM, put the job back into the queue (`scontrol requeue`); have it signalled in time with
            `#SBATCH --signal=SIGUSR1@300`.
        dirpath: folder of `last.ckpt`; default: that of the run's `LastCheckpoint`, else `trainer.default_root_dir`.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1)

    def __init__(self, requeue: bool = True, dirpath: str | None = None) -> None:
        self.requeue, self.dirpath = requeue, dirpath
        self._received = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if threading.current_thread() is not threading.main_thread():
            rank_zero_warn("Preemption does nothing: signals can only be caught in the main thread")
            return
        self._received = 0
        self._before = {number: signal.signal(number, self._note) for number in self.SIGNALS}

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and leave, if any process was told to."""
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        number = self._received
        if trainer.world_size > 1:  # of all processes; alone, there is nothing to wait for the device for
            received = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(received, reduce_op="max"))
        # After the last step a run has nothing to go on with: what is left, as its last validation, would be lost.
        if not number or trainer.estimated_stepping_batches <= trainer.global_step:
            return
        last = next((c for c in trainer.checkpoint_callbacks if isinstance(c, LastCheckpoint)), None)
        if last is not None and self.dirpath is None:
            last.save(trainer)
            path = last.last_model_path
        else:
            path = str(Path(self.dirpath or trainer.default_root_dir) / "last.ckpt")
            trainer.save_checkpoint(path)
        rank_zero_info(f"{signal.Signals(number).name}: saved {path} at step {trainer.global_step}")
        if self.requeue and trainer.is_global_zero:
            _requeue()
        self._received = 0
        trainer.limit_val_batches = 0  # no time for the validation that Lightning ends with
        trainer.fit_loop.min_epochs, trainer.fit_loop.epoch_loop.min_steps = 0, 0  # else it would go on until then
        trainer.should_stop = True

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._received = number


def _requeue() -> None:
    """Put this SLURM job back into the queue; nothing outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    if not re.fullmatch(r"\d+(_\d+)?", job):
        return
    try:
        done = subprocess.run(["scontrol", "requeue", job], check=False).returncode == 0
    except FileNotFoundError:
        done = False
    if not done:
        rank_zero_warn(f"scontrol requeue {job} failed: submit the job again, it goes on by itself")
