"""Evaluation losses that do not depend on how the data is split over batches and processes."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class LossMean(Metric):
    """Weighted sum of losses, each of them a mean over all its targets, whichever batch or process had them.

    A mean over batches weighs targets of small batches more; and a weighted sum per batch, averaged afterwards, depends
    on which targets happened to share a batch. A process without any target changes nothing.

    Args:
        weights: factor of each loss, by name.
        device: where it is summed.
    """

    sums: Tensor
    counts: Tensor
    higher_is_better = False
    full_state_update = False

    def __init__(self, weights: dict[str, float], device: torch.device | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        # Doubles, as a sum over many batches would lose what single ones add; Apple's GPUs have none.
        kind = torch.float32 if device is not None and device.type == "mps" else torch.float64
        self.add_state("sums", torch.zeros(len(weights), dtype=kind), dist_reduce_fx="sum")
        self.add_state("counts", torch.zeros(len(weights), dtype=kind), dist_reduce_fx="sum")
        self.to(device)

    def update(self, sums: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Add a batch.

        Args:
            sums: scalars, each loss summed over its targets.
            counts: targets of each.
        """
        self.sums += torch.stack([sums[name].detach().to(self.sums.dtype) for name in self.weights])
        self.counts += torch.tensor([counts[name] for name in self.weights], device=self.counts.device)

    def compute(self) -> Tensor:
        """The value over everything seen; 0 for a loss that had no target at all."""
        weights = torch.tensor(list(self.weights.values()), dtype=self.sums.dtype, device=self.sums.device)
        return (weights * self.sums / self.counts.clamp(min=1)).sum().float()
