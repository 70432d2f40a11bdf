"""What happens to a step whose loss or gradients are not finite, decided by all processes together."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch import distributed as dist
from torch.optim import Optimizer

from speechzoo.doctor.weights import local
from speechzoo.system.ranks import world_size


class NonFiniteGuard(Callback):
    """Raises at, or skips, an optimizer step with a NaN or infinite loss or gradient.

    Looked at once per optimizer step, after accumulation and before clipping; one all-reduce makes all processes
    agree. A skipped step changes neither weights nor moments nor Adam's step count: its gradients are dropped, so the
    optimizer finds nothing to do. The learning-rate schedule and Lightning's step count do advance. Skipped steps are
    logged as `train/skipped_steps` and counted across restarts. Where fp16's loss scaler is at work, infinite
    gradients are its business, and only the loss is looked at.

    Args:
        policy: `raise` ends the run, its weights being those of the last good step; `skip` goes on.
        most_in_a_row: skipped steps in a row after which `skip` raises too.
    """

    def __init__(self, policy: Literal["raise", "skip"] = "raise", most_in_a_row: int = 10) -> None:
        if policy not in ("raise", "skip"):
            raise ValueError(f"NonFiniteGuard.policy is raise or skip, not {policy!r}")
        if most_in_a_row < 1:
            raise ValueError(f"NonFiniteGuard.most_in_a_row is at least 1, got {most_in_a_row}")
        self.policy, self.most_in_a_row = policy, most_in_a_row
        self.skipped = 0
        self._in_a_row = 0
        self._bad: Tensor | None = None  # of the losses since the last step
        self._rows: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._rows += getattr(batch, "ids", [])

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach())
        self._bad = bad if self._bad is None else self._bad | bad

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look, agree, and raise or drop the gradients.

        Raises:
            RuntimeError: on every process, naming those whose loss it was.
        """
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        losses, gradients = self._agree(trainer, optimizer, look_at_gradients=not scaled)
        rows, self._rows, self._bad = self._rows, [], None
        if not losses and not gradients:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        what = f"loss on rank {', '.join(map(str, losses))}" if losses else "gradients after finite losses"
        text = f"not finite: {what}, step {trainer.global_step}"
        if trainer.global_rank in losses or not losses:
            text += f" (rank {trainer.global_rank} had {', '.join(rows[:8])}{' ...' if len(rows) > 8 else ''})"
        if self.policy == "raise" or self._in_a_row >= self.most_in_a_row:
            often = f"; {self._in_a_row} steps in a row" if self._in_a_row > 1 else ""
            raise RuntimeError(
                f"{text}{often}. The weights are those before this step. Look at these rows, lower the learning rate, "
                "clip gradients (trainer.gradient_clip_val), use bf16-mixed instead of fp16"
            )
        optimizer.zero_grad(set_to_none=True)
        self.skipped += 1
        pl_module.log("train/skipped_steps", float(self.skipped), rank_zero_only=True, batch_size=1)
        rank_zero_warn(f"{text}: step skipped, {self.skipped} so far")

    def _agree(self, trainer: Trainer, optimizer: Optimizer, look_at_gradients: bool) -> tuple[list[int], bool]:
        """Ranks with a bad loss, and whether any process has a bad gradient; known to all processes."""
        device = trainer.strategy.root_device
        flags = torch.zeros(trainer.world_size + 1, dtype=torch.long, device=device)
        if self._bad is not None:
            flags[trainer.global_rank] = self._bad.long()
        if look_at_gradients:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = [local(p.grad) for p in parameters if p.grad is not None]
            if gradients:
                norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
                flags[-1] = (~torch.isfinite(norms)).any().long()
        if world_size() > 1:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        *losses, gradients_bad = flags.tolist()
        return [rank for rank, bad in enumerate(losses) if bad], bool(gradients_bad)
