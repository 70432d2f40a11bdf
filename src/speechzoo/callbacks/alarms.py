"""Alarms for trainings that run without failing and learn nothing: dead parts, blank units, exploding norms."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from speechzoo.types import SpeechOutput


class Alarm(Callback):
    """Base: counts how often in a row a check finds something wrong, and speaks up when it has been `patience` times.

    An alarm is a warning on the console that says what to do, and `alarm/<name>` = 1 in the loggers (0 while all is
    well). It never stops a run.

    Args:
        every_n_steps: optimizer steps between checks.
        patience: checks in a row that find it before the alarm.
    """

    def __init__(self, every_n_steps: int, patience: int) -> None:
        if every_n_steps < 1 or patience < 1:
            raise ValueError(f"{type(self).__name__}: every_n_steps and patience are at least 1")
        self.every_n_steps, self.patience = every_n_steps, patience
        self._in_a_row: dict[str, int] = {}
        self._hook: RemovableHandle | None = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()

    def due(self, trainer: Trainer) -> bool:
        """Whether this step is one to check."""
        return trainer.global_step % self.every_n_steps == 0

    def report(self, trainer: Trainer, module: LightningModule, name: str, wrong: str | None, advice: str) -> None:
        """Take the result of a check: what is wrong, or None."""
        count = self._in_a_row[name] = self._in_a_row.get(name, 0) + 1 if wrong else 0
        module.log(
            f"alarm/{name}",
            float(count >= self.patience),
            on_step=True,
            on_epoch=False,
            batch_size=1,
            rank_zero_only=True,
        )
        if wrong and count >= self.patience and (count - self.patience) % (10 * self.patience) == 0:
            rank_zero_warn(f"ALARM {name} at step {trainer.global_step}: {wrong} -> {advice}")

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": dict(self._in_a_row)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._in_a_row = dict(state_dict["in_a_row"])


class DeadPart(Alarm):
    """Alarms when a part that should learn has no gradient to speak of, does not move, or gives a constant output.

    Inactive where the part is frozen.

    Args:
        part: name of the model's part.
        min_gradient: norm of its gradient, over the norm of its weights.
        min_update: norm of what a step changes, over the norm of its weights.
        min_spread: standard deviation of its output over clips and frames, over the output's root mean square.
    """

    def __init__(
        self,
        part: str = "adaptor",
        every_n_steps: int = 50,
        patience: int = 3,
        min_gradient: float = 1e-10,
        min_update: float = 1e-10,
        min_spread: float = 1e-4,
    ) -> None:
        super().__init__(every_n_steps, patience)
        self.part = part
        self.min_gradient, self.min_update, self.min_spread = min_gradient, min_update, min_spread
        self._spread: float | None = None
        self._seen: dict[str, float] | None = None
        self._before: list[Tensor] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        part = getattr(pl_module, self.part, None)
        if part is None:
            raise ValueError(f"DeadPart: {type(pl_module).__name__} has no part {self.part!r}")
        self._hook = part.register_forward_hook(lambda _, inputs, output: self._look(trainer, output))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        weights = self._weights(pl_module)
        if not weights or not self.due(trainer):
            return
        gradients = [w.grad for w in weights if w.grad is not None]
        size = max(_norm(weights), 1e-12)
        self._seen = {"size": size, "gradient": _norm(gradients) / size}
        self._before = [weight.detach().clone() for weight in weights]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._seen is None:
            return
        after = [weight.detach() for weight in self._weights(pl_module)]
        moved = _norm([a - b for a, b in zip(after, self._before, strict=True)]) / self._seen["size"]
        found = {
            "gradient": (self._seen["gradient"], self.min_gradient, "is its gradient relative to its weights"),
            "update": (moved, self.min_update, "is what a step changes, relative to its weights"),
        }
        if self._spread is not None:
            found["spread"] = (self._spread, self.min_spread, "is the relative spread of its outputs")
        low = [f"{value:.1e} {what}" for value, least, what in found.values() if not value >= least]
        self.report(
            trainer,
            pl_module,
            f"dead_{self.part}",
            f"the {self.part} is dead: {'; '.join(low)}" if low else None,
            "check its learning rate (model.lr_scale), initial weights and inputs; warm up longer or start it anew",
        )
        self._seen, self._before, self._spread = None, [], None

    def _weights(self, module: nn.Module) -> list[nn.Parameter]:
        return [p for p in getattr(module, self.part).parameters() if p.requires_grad]

    @torch.no_grad()
    def _look(self, trainer: Trainer, output: Any) -> None:
        """The spread of the states; of the last micro-batch before a check."""
        if trainer.training and self.due(trainer) and isinstance(output, tuple):
            states, lens = output
            real = states[torch.arange(states.shape[1], device=states.device) < lens[:, None]].float()
            if len(real) > 1:
                self._spread = float((real - real.mean(0)).square().mean().sqrt() / real.square().mean().sqrt())


class AllBlank(Alarm):
    """Alarms when a unit decoder speaks nothing but blanks, long after CTC's usual blank beginning.

    Logs `train/blank_share`: blanks among the greedy labels of a batch, over all processes.

    Args:
        after_steps: steps from which it counts; CTC learns the blank first.
        share: of blanks from which it is an alarm.
    """

    def __init__(self, every_n_steps: int = 50, patience: int = 5, after_steps: int = 500, share: float = 1.0) -> None:
        super().__init__(every_n_steps, patience)
        self.after_steps, self.share = after_steps, share
        self._counts: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook = pl_module.register_forward_hook(lambda _, inputs, output: self._look(trainer, output))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # While micro-batches accumulate the step count still names the step before, which has been checked.
        if not self.due(trainer) or trainer.fit_loop.epoch_loop._should_accumulate():
            return
        counts = self._counts if self._counts is not None else torch.zeros(2, device=trainer.strategy.root_device)
        blanks, total = trainer.strategy.reduce(counts.clone(), reduce_op="sum").tolist()
        self._counts = None
        if not total:
            return
        share = blanks / total
        pl_module.log("train/blank_share", share, on_step=True, on_epoch=False, batch_size=1, rank_zero_only=True)
        wrong = share >= self.share and trainer.global_step >= self.after_steps
        self.report(
            trainer,
            pl_module,
            "all_blank",
            f"{share:.1%} of the unit decoder's labels are blanks" if wrong else None,
            "check that units belong to these answers and are padded with -100; raise the learning rate or the warmup; "
            "a lower unit_decoder.upsample leaves fewer blanks",
        )

    @torch.no_grad()
    def _look(self, trainer: Trainer, output: Any) -> None:
        if not trainer.training or not isinstance(output, SpeechOutput) or output.unit_logits is None:
            return
        logits, lens = output.unit_logits, cast(Tensor, output.unit_logit_lens)
        real = torch.arange(logits.shape[1], device=logits.device) < lens[:, None]
        blanks = (logits.argmax(dim=-1) == logits.shape[-1] - 1) & real
        self._counts = torch.stack([blanks.sum(), real.sum()]).float()


class ExplodingNorms(Alarm):
    """Alarms when a part's weights have grown, or its gradient stands out, by more than a factor; logs `norm/<part>`.

    Args:
        weight_factor: norm of the weights over that at the start of the run.
        gradient_factor: norm of the gradient, before clipping, over the median of the last checks.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        patience: int = 1,
        weight_factor: float = 3.0,
        gradient_factor: float = 100.0,
    ) -> None:
        super().__init__(every_n_steps, patience)
        self.weight_factor, self.gradient_factor = weight_factor, gradient_factor
        self._start: dict[str, float] = {}
        self._past: dict[str, deque[float]] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.due(trainer):
            return
        for name, part in pl_module.named_children():
            weights = [p for p in part.parameters() if p.requires_grad]
            if not weights:
                continue
            size = _norm(weights)
            gradient = _norm([w.grad for w in weights if w.grad is not None])
            past = self._past.setdefault(name, deque(maxlen=100))
            start = self._start.setdefault(name, size)
            usual = statistics.median(past) if len(past) >= 5 else 0.0
            wrong = []
            if start and size > self.weight_factor * start:
                wrong.append(f"the weights of {name} are {size / start:.1f} times as large as at the start")
            if usual and gradient > self.gradient_factor * usual:
                wrong.append(f"the gradient of {name} is {gradient / usual:.0f} times the usual one")
            past.append(gradient)
            pl_module.log_dict(
                {f"norm/{name}": size, f"norm/{name}_gradient": gradient},
                on_step=True,
                on_epoch=False,
                batch_size=1,
                rank_zero_only=True,
            )
            advice = "lower the learning rate, clip gradients (trainer.gradient_clip_val), warm up longer"
            self.report(trainer, pl_module, f"exploding_{name}", "; ".join(wrong) or None, advice)

    def state_dict(self) -> dict[str, Any]:
        past = {name: list(values) for name, values in self._past.items()}
        return {**super().state_dict(), "start": dict(self._start), "past": past}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._start = dict(state_dict["start"])
        self._past = {name: deque(values, maxlen=100) for name, values in state_dict["past"].items()}


def _norm(tensors: Sequence[Tensor]) -> float:
    """Of all tensors together; of the whole ones where they are cut over processes, which then have to call it
    together."""
    if not tensors:
        return 0.0
    total = get_total_norm([tensor.detach() for tensor in tensors])
    return float(total.full_tensor() if isinstance(total, DTensor) else total)
