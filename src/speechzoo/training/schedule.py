"""Learning-rate schedules that know the length of the run."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from speechzoo.names.spec import at_least


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
