"""Learning-rate schedules that know the length of the run."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from speechzoo.names.spec import at_least, to_factory, to_spec

COUNTS = ("T_max", "T_0", "total_iters")
"""What torch's own schedules call a number of steps, where it is the argument after the optimizer."""

STEPS = "num_training_steps"
"""What the schedules of transformers call it."""

Schedule = Callable[[Optimizer, int], LRScheduler]


class WarmupCosine(LambdaLR):
    """Linear warm-up, then a half cosine to `final_ratio` of the peak (both papers: cosine, 3 % warm-up).

    Args:
        optimizer: its learning rate is the peak.
        total_steps: optimizer steps of the run; the model fills it in.
        warmup_ratio: part of the run that warms up.
        final_ratio: learning rate at the end over the peak.
    """

    def __init__(
        self, optimizer: Optimizer, total_steps: int, warmup_ratio: float = 0.03, final_ratio: float = 0.0
    ) -> None:
        at_least(0, "WarmupCosine", warmup_ratio=warmup_ratio, final_ratio=final_ratio)
        if warmup_ratio > 1:
            raise ValueError(f"WarmupCosine.warmup_ratio is a share of the run, at most 1, not {warmup_ratio}")
        warmup = max(1, math.ceil(total_steps * warmup_ratio))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            done = min(1.0, (step - warmup) / max(1, total_steps - warmup))
            return final_ratio + (1 - final_ratio) * 0.5 * (1 + math.cos(math.pi * done))

        super().__init__(optimizer, factor)


def schedule_factory(given: Any) -> Schedule | None:
    """What makes a schedule from (optimizer, number of optimizer steps); None where none is wanted.

    Raises:
        ValueError: for one of torch's whose second argument is something else, which the number would be taken for; for
            one of transformers' that lacks a setting.
    """
    if given is None:
        return None
    make = to_factory(to_spec(given))
    kind: Any = getattr(make, "func", make)
    _, second, *more = signature(kind).parameters.values()
    if kind.__module__.startswith("transformers."):
        lacking = {p.name: p for p in (second, *more) if p.default is p.empty and p.name != STEPS}
        if missing := sorted(lacking.keys() - getattr(make, "keywords", {}).keys()):
            raise ValueError(f"model.lr_scheduler: {kind.__name__} needs {missing[0]} in its init_args")
        return partial(_of_transformers, make, any(p.name == STEPS for p in (second, *more)))
    if kind.__module__.startswith("torch.optim") and second.name not in COUNTS:
        raise ValueError(
            f"model.lr_scheduler: {kind.__name__} would take the number of steps for its {second.name}: name "
            "WarmupCosine, CosineAnnealingLR, PolynomialLR, or a class of your own that is made from (optimizer, "
            "number of steps)"
        )
    return make


def _of_transformers(make: Callable[..., LRScheduler], counts: bool, optimizer: Optimizer, steps: int) -> LRScheduler:
    """Its functions take steps of warm-up where others take those of the run, or no number of steps at all."""
    return make(optimizer, **{STEPS: steps, **getattr(make, "keywords", {})}) if counts else make(optimizer)


def with_schedule(optimizer: Optimizer, make: Schedule | None, trainer: Any) -> Any:
    """What Lightning wants of `configure_optimizers`: a schedule that goes on after each optimizer step.

    Raises:
        ValueError: if the run has no end that is known beforehand.
    """
    if make is None:
        return optimizer
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise ValueError(
            "model.lr_scheduler has to know the length of the run: set trainer.max_steps or trainer.max_epochs (beside "
            "max_time), or model.lr_scheduler: null"
        )
    schedule = make(optimizer, int(steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
