"""The token-exact loss: every target of a step counts the same, whatever rank or micro-batch it is in.

A mean per rank and micro-batch, which frameworks take by default, weighs the tokens of short batches more (19 times
with 10 against 190 tokens). Here sums are divided by the number of targets of the whole step.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

Counts = Mapping[str, int | Tensor]


def global_counts(counts: Mapping[str, int], device: torch.device) -> Counts:
    """Counts summed over all ranks (the counts themselves in a single process); nothing waits for the device."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return counts
    names = sorted(counts)
    total = torch.tensor([counts[name] for name in names], dtype=torch.long).to(device, non_blocking=True)
    dist.all_reduce(total)
    return dict(zip(names, total.unbind(), strict=True))


def step_loss(
    sums: dict[str, Tensor], counts: Counts, weights: dict[str, float], world_size: int, accumulate: int
) -> Tensor:
    """The micro-batch's share of the step's loss, scaled so that averaging over ranks and accumulation gives the whole.

    Args:
        sums: scalars, losses summed over this micro-batch's targets, by name.
        counts: targets of the whole step (all ranks, all accumulated micro-batches), by name.
        weights: factor of each loss.
        world_size: the strategy divides gradients by it.
        accumulate: Lightning divides the loss by it.
    """
    terms = [weights[name] * total / _at_least_one(counts[name]) for name, total in sums.items()]
    return torch.stack(terms).sum() * (world_size * accumulate)


def _at_least_one(count: int | Tensor) -> int | Tensor:
    return count.clamp(min=1) if isinstance(count, Tensor) else max(1, count)
