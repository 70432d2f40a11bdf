"""Progress of a training stage with the time that is left of the whole stage.

Lightning's `RichProgressBar` counts batches of one epoch and estimates the rest of that epoch only; this adds the
optimiser steps and the remaining time of the stage, and plain lines where the output is no terminal.
"""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich import get_console
from rich.progress import ProgressColumn, Task
from rich.table import Column
from rich.text import Text


class StageProgress(RichProgressBar):
    """Rich progress bar that also shows the steps and the remaining time of the whole stage.

    Args:
        stage: name shown before the steps, e.g. "llasm pretrain".
        refresh_rate: redraws per second; 0 hides everything.
        line_every: where the output is no terminal (a log file, CI), print one line each time this share of the
            stage is done; 0 prints none.
    """

    def __init__(self, stage: str = "", refresh_rate: int = 4, line_every: float = 0.1) -> None:
        super().__init__(refresh_rate=refresh_rate)
        if not 0 <= line_every <= 1:
            raise ValueError(f"line_every is a share of the stage between 0 and 1, got {line_every}")
        self.stage = stage
        self.line_every = line_every
        self._started: tuple[float, int] | None = None
        self._lines = 0
        self._batch = 0  # batches of the epoch that are done

    @property
    def on_screen(self) -> bool:
        """Whether there is a terminal to redraw; into a file rich would write its last frame, wrapped."""
        return get_console().is_terminal

    @property
    def is_enabled(self) -> bool:
        """Whether bars are drawn."""
        return super().is_enabled and self.on_screen

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._started = time.monotonic(), trainer.global_step
        self._lines = self._share(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batch = 0
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._batch = batch_idx
        if self.progress is not None and self.train_progress_bar_id is not None:
            self.progress.update(self.train_progress_bar_id, total=self.total_train_batches)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch_idx + 1
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if super().is_enabled and self.line_every and not self.on_screen:
            share = self._share(trainer)
            if share > self._lines:
                self._lines = share
                values = {k: v for k, v in self.get_metrics(trainer, pl_module).items() if isinstance(v, float)}
                metrics = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
                print(f"{self.stage} {self.describe(trainer)} {metrics}".strip(), flush=True)

    def _update_metrics(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # To read a loss is to wait for the device, so the bar shows new ones as often as the loggers get them.
        every = max(getattr(trainer, "log_every_n_steps", 1), 1)
        if not trainer.training or trainer.global_step % every == 0:
            super()._update_metrics(trainer, pl_module)

    def configure_columns(self, trainer: Trainer) -> list[ProgressColumn]:
        description, bar, batches, *_ = super().configure_columns(trainer)
        bar.bar_width = 16  # leaves an 80-column terminal room for the losses
        return [description, bar, batches, _StageColumn(self, trainer)]

    def _get_train_description(self, current_epoch: int) -> str:
        # Lightning writes "Epoch 0/-2" for a stage that is limited by steps.
        return f"{self.stage} epoch {current_epoch}".strip()

    @property
    def total_train_batches(self) -> int | float:
        """Batches of this epoch that training will reach.

        Lightning takes the steps that are left for batches, and counts them from the start of the epoch: with
        accumulation, or resumed inside an epoch, its bars end at 8/4.
        """
        trainer = self.trainer
        batches, window = trainer.num_training_batches, trainer.accumulate_grad_batches
        if trainer.max_steps < 0:
            return batches
        left = max(trainer.max_steps - trainer.global_step, 0)
        return min(batches, max((self._batch // window + left) * window, self._batch))

    def describe(self, trainer: Trainer) -> str:
        """For example "120/400 steps, 0:01:20 left"."""
        total, left = stage_steps(trainer), self.remaining(trainer)
        steps = f"{trainer.global_step}" + ("" if total is None else f"/{total}") + " steps"
        return steps + ("" if left is None else f", {timedelta(seconds=round(left))} left")

    def remaining(self, trainer: Trainer) -> float | None:
        """Seconds until the stage ends, from the mean speed since this process started it; None while unknown."""
        total = stage_steps(trainer)
        if self._started is None or total is None or trainer.global_step == self._started[1]:
            return None
        elapsed, done = time.monotonic() - self._started[0], trainer.global_step - self._started[1]
        return elapsed / done * max(total - trainer.global_step, 0)

    def _share(self, trainer: Trainer) -> int:
        total = stage_steps(trainer)
        return 0 if not total or not self.line_every else int(trainer.global_step / total / self.line_every + 1e-9)


def stage_steps(trainer: Trainer) -> int | None:
    """Optimiser steps of the whole stage as far as the trainer's limits tell; None for an endless one.

    `trainer.estimated_stepping_batches` is not used: it may build the training dataloader a second time.
    """
    limits = [trainer.max_steps] if trainer.max_steps >= 0 else []
    batches = trainer.num_training_batches
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and math.isfinite(batches):
        limits.append(trainer.max_epochs * math.ceil(batches / trainer.accumulate_grad_batches))
    return int(min(limits)) if limits else None


class _StageColumn(ProgressColumn):
    """Steps and remaining time of the stage, on the training row only."""

    max_refresh = 0.5

    def __init__(self, bar: StageProgress, trainer: Trainer) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self._bar, self._trainer = bar, trainer

    def render(self, task: Task) -> Text:
        if task.id != self._bar.train_progress_bar_id:
            return Text()
        return Text(self._bar.describe(self._trainer), style="bold")
