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

    With a fused optimizer nothing waits for the device: the update itself leaves all as it was where something is not
    finite, and the host learns of it, and raises, one step later or when a checkpoint is saved.

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
        self._logged = 0
        self._in_a_row = 0
        self._pending: _Pending | None = None
        self._bad: Tensor | None = None  # of the losses since the last step
        self._rows: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        self._settle()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = self._logged = state_dict["skipped"]

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
        self._settle()
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        flags = self._look(trainer, optimizer, look_at_gradients=not scaled)
        waiting = optimizer.defaults.get("fused") and not scaled and flags.device.type in ("cpu", "cuda")
        if waiting:
            optimizer.found_inf = flags.any().float()  # type: ignore[attr-defined]  # as torch's GradScaler does
        self._pending = _Pending(flags, trainer.global_step, trainer.global_rank, self._rows)
        self._rows, self._bad = [], None
        if not waiting and self._settle():
            optimizer.zero_grad(set_to_none=True)
        if self.skipped > self._logged:
            self._logged = self.skipped
            pl_module.log("train/skipped_steps", float(self.skipped), rank_zero_only=True, batch_size=1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._settle()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        for optimizer in trainer.optimizers:
            vars(optimizer).pop("found_inf", None)

    def _settle(self) -> bool:
        """Read what was found at the last step looked at, if that is still to be done; whether it was bad."""
        pending, self._pending = self._pending, None
        if pending is None:
            return False
        losses, gradients = pending.read()
        if not losses and not gradients:
            self._in_a_row = 0
            return False
        self._in_a_row += 1
        what = f"loss on rank {', '.join(map(str, losses))}" if losses else "gradients after finite losses"
        text = f"not finite: {what}, step {pending.step}"
        if pending.rank in losses or not losses:
            rows = pending.rows
            text += f" (rank {pending.rank} had {', '.join(rows[:8])}{' ...' if len(rows) > 8 else ''})"
        if self.policy == "raise" or self._in_a_row >= self.most_in_a_row:
            often = f"; {self._in_a_row} steps in a row" if self._in_a_row > 1 else ""
            raise RuntimeError(
                f"{text}{often}. The weights are those before this step. Look at these rows, lower the learning rate, "
                "clip gradients (trainer.gradient_clip_val), use bf16-mixed instead of fp16"
            )
        self.skipped += 1
        rank_zero_warn(f"{text}: step skipped, {self.skipped} so far")
        return True

    def _look(self, trainer: Trainer, optimizer: Optimizer, look_at_gradients: bool) -> Tensor:
        """Whether each rank had a bad loss, and whether any process has a bad gradient: `[ranks + 1]`, the same on all
        processes."""
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
        return flags


class _Pending:
    """Flags of a step on their way to the host."""

    def __init__(self, flags: Tensor, step: int, rank: int, rows: list[str]) -> None:
        self.step, self.rank, self.rows = step, rank, rows
        self._there = None
        if flags.is_cuda:
            self._flags, self._there = flags.to("cpu", non_blocking=True), torch.cuda.Event()
            self._there.record()
        else:
            self._flags = flags

    def read(self) -> tuple[list[int], bool]:
        """Ranks with a bad loss, and whether any process had a bad gradient."""
        if self._there is not None:
            self._there.synchronize()
        *losses, gradients_bad = self._flags.tolist()
        return [rank for rank, bad in enumerate(losses) if bad], bool(gradients_bad)
