"""How a speech LLM learns: losses by name, each divided by all its targets, logged; optimizer and schedule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, cast

import torch
from lightning import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechzoo.names.spec import at_least
from speechzoo.training.exact_loss import global_counts, step_loss
from speechzoo.training.freeze import parameter_groups
from speechzoo.training.loss_metric import LossMean
from speechzoo.training.schedule import with_schedule
from speechzoo.types import HostSide, SpeechBatch, SpeechReply

Objective = Callable[[SpeechBatch], int]
"""Counts the targets of one loss in a batch, on one process."""


def supervised_tokens(batch: SpeechBatch) -> int:
    """Answer tokens and their end tokens: the targets of next-token cross entropy."""
    return int((batch.turns > 0).sum())


def answers(batch: SpeechBatch) -> int:
    """Assistant turns of all rows."""
    return int(batch.turns.amax(dim=1).sum())


def target_units(batch: SpeechBatch) -> int:
    """Units of all answers that have some: the targets of CTC."""
    return 0 if batch.unit_lens is None else int(batch.unit_lens.sum())


class Learning(LightningModule):
    """The part of `SpeechLLM` that learns.

    Attributes:
        objectives: the losses of this architecture by name, each with what counts its targets. One with a loss of its
            own adds it here, and its sum in `add_losses`; normalisation, logs and weights follow from that.
        unit_loss: which of them is over target units; None where there are none.
        reads: whether batches bring `written`, the conversations with transcripts for clips. A model that also has
            `teacher_fingerprint` and `teacher_states` (see `Ultravox`) may find there what its LLM made of them.
        loss_weights: factor of each loss.
        last_loss: `train/loss` of the last batch, None where it had no target; Lightning's own copy is read by waiting
            for the device.
    """

    last_loss: Tensor | None = None
    objectives: ClassVar[Mapping[str, Objective]] = {"lm": supervised_tokens}
    unit_loss: ClassVar[str | None] = None
    reads: ClassVar[bool] = False
    loss_weights: dict[str, float]
    optimizer_factory: Callable[..., Optimizer]
    scheduler_factory: Callable[..., LRScheduler] | None
    lr_scale: dict[str, float]

    def __init__(self) -> None:
        super().__init__()
        self.val_losses = nn.ModuleDict()

    def weights_of_losses(self, given: Mapping[str, float]) -> dict[str, float]:
        """A factor for each loss.

        Raises:
            ValueError: if a factor is negative, or all are 0; or for a loss that there is not.
        """
        # Earlier versions wrote `ctc: 1.0` into every run; a factor of 1 for a loss that there is not changes nothing.
        given = {name: factor for name, factor in given.items() if name in self.objectives or factor != 1}
        if unknown := sorted(set(given) - set(self.objectives)):
            there = " and ".join(self.objectives)
            raise ValueError(f"model.loss_weights: {type(self).__name__} has no loss {unknown[0]!r}, it has {there}")
        at_least(0, "model.loss_weights", **given)
        weights = {**dict.fromkeys(self.objectives, 1.0), **given}
        if not any(weights.values()):
            there = ", ".join(weights)
            raise ValueError(f"model.loss_weights: all losses of {type(self).__name__} ({there}) are 0")
        return weights

    def num_targets(self, batch: SpeechBatch) -> dict[str, int]:
        """Targets by loss name: the denominators of the token-exact loss.

        Counted once, best before the batch goes to a GPU, where each count would wait for the device.
        """
        if batch.counts is None:
            batch.counts = {name: count(batch) for name, count in self.objectives.items()}
        return batch.counts

    def _wants(self, loss: str) -> bool:
        """A loss with weight 0 costs nothing in training; validation reports all."""
        return not self.training or self.loss_weights[loss] != 0

    def respond(self, batch: SpeechBatch) -> SpeechReply:
        """Answer each row."""
        raise NotImplementedError

    def host_side(self, batch: SpeechBatch) -> HostSide:
        """See `SpeechLLM.host_side`."""
        raise NotImplementedError

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Lightning's hook: sizes are taken while the batch is on the host, and nothing waits for the copies."""
        if not isinstance(batch, SpeechBatch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        if batch.input_ids.device.type == "cpu":
            self.num_targets(batch)
            batch = replace(batch, host=self.host_side(batch))
        return batch.to(device, non_blocking=device.type == "cuda")

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        out = self(batch)
        accumulate = self.trainer.accumulate_grad_batches
        if batch.window is None and accumulate > 1:
            raise ValueError(
                "gradient accumulation needs the targets of the whole window: use SpeechDataModule, or wrap your "
                "loader with speechzoo.data.with_windows(loader, model.num_targets, ...)"
            )
        local = self.num_targets(batch)
        counts = global_counts(batch.window or local, self.device)
        loss = step_loss(out.sums, counts, self.loss_weights, self.trainer.world_size, accumulate)
        for name, value in out.losses.items():
            if local[name]:
                self.log(f"train/{name}_loss", value.detach(), prog_bar=True, batch_size=len(batch))
        for name, number in out.counters.items():  # of all processes, each of which has the same names
            value = torch.full((), float(number), device=self.device)  # of a float Lightning would wait for the copy
            self.log(f"train/{name}", value, batch_size=len(batch), reduce_fx="sum", on_epoch=True, sync_dist=True)
        self.last_loss = None
        if any(local[name] for name in out.losses):  # without a target there is no loss, which is not one of 0
            self.last_loss = torch.stack([self.loss_weights[n] * v.detach() for n, v in out.losses.items()]).sum()
            self.log("train/loss", self.last_loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "val", dataloader_idx)

    def test_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch, "test", dataloader_idx)

    def predict_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> SpeechReply:
        return self.respond(batch)

    def _evaluate(self, batch: SpeechBatch, stage: str, loader: int) -> None:
        """Log `val/loss`, or `val/<name>/loss` where there are several sets: means over targets, not means of means."""
        prefixes = self._prefixes(stage)
        prefix = prefixes[loader] if len(prefixes) > 1 else stage
        counts = self.num_targets(batch)
        out = self(batch)
        values = {f"{prefix}/{name}_loss": {name: 1.0} for name in out.sums}
        values[f"{prefix}/loss"] = {name: self.loss_weights[name] for name in out.sums}
        for name, weights in values.items():
            key = name.encode().hex()  # a module's name has no dots, and two sets never share one
            if key not in self.val_losses:
                self.val_losses[key] = LossMean(weights, self.device)
            metric = cast(LossMean, self.val_losses[key])
            metric.update(out.sums, counts)
            self.log(
                name,
                metric,
                batch_size=len(batch),
                add_dataloader_idx=False,
                metric_attribute=f"val_losses.{key}",
            )

    def validation_scores(self) -> list[str]:
        """Names of what a validation of this model and its data logs."""
        kinds = ("", *(f"{name}_" for name in self.objectives))
        return [f"{prefix}/{kind}loss" for prefix in self._prefixes("val") for kind in kinds]

    def _prefixes(self, stage: str) -> list[str]:
        """What the names of a stage's scores begin with: one where there is one set of data, else one a set."""
        names = getattr(getattr(self.trainer, "datamodule", None), f"{stage}_names", [])
        return [f"{stage}/{name}" for name in names] if len(names) > 1 else [stage]

    def any_optimizer(self) -> Optimizer:
        """An optimizer of the configured kind and settings over one number, to be asked what it is like."""
        return self.optimizer_factory([nn.Parameter(torch.zeros(1))])

    def configure_optimizers(self) -> Any:
        optimizer = self.any_optimizer()
        groups = parameter_groups(self, self.lr_scale, optimizer.defaults["lr"])
        optimizer = self.optimizer_factory(groups)
        return with_schedule(optimizer, self.scheduler_factory, self.trainer)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip, also with a fused optimizer under bf16.

        Lightning's mixed-precision plugin refuses fused optimizers because they undo a loss scaling themselves; bf16
        has none, so its base class may clip.
        """
        plugin = self.trainer.precision_plugin
        if isinstance(plugin, MixedPrecision) and plugin.scaler is None and gradient_clip_val:
            Precision.clip_gradients(
                plugin, optimizer, gradient_clip_val, GradClipAlgorithmType(gradient_clip_algorithm or "norm")
            )
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
