"""What every corpus-level score here is: a sum over items divided by another sum over items."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from torchmetrics import Metric


def edit_distance(reference: Sequence[Hashable], hypothesis: Sequence[Hashable]) -> int:
    """Insertions + deletions + substitutions that turn one sequence into the other (words, characters or units)."""
    return Levenshtein.distance(reference, hypothesis)


class RatioMetric(Metric):
    """A torchmetrics metric whose value is `numerator / denominator`, each summed over items and ranks.

    So it is never a mean of means: batches and ranks of different size weigh by their content. A rank without items
    adds nothing; with a denominator of 0 (no items at all, or only empty references) the value is nan.
    """

    is_differentiable = False
    full_state_update = False
    plot_lower_bound = 0.0

    numerator: Tensor
    denominator: Tensor
    numerator_dtype = torch.long  # counts are exact, where float32 stops counting at 2^24

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("numerator", torch.zeros((), dtype=self.numerator_dtype), dist_reduce_fx="sum")
        self.add_state("denominator", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    @abstractmethod
    def counts(self, prediction: Any, reference: Any) -> tuple[float, int]:
        """What one item adds to the numerator and to the denominator."""

    def item_counts(self, predictions: Iterable[Any], references: Iterable[Any]) -> list[tuple[float, int]]:
        """`counts` of each item, for bootstrap intervals.

        Raises:
            ValueError: if the two do not have the same number of items.
        """
        predictions, references = list(predictions), list(references)
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
        return [self.counts(p, r) for p, r in zip(predictions, references, strict=True)]

    def update(self, predictions: Iterable[Any], references: Iterable[Any]) -> None:
        """Add items; two sequences of the same length (a single string is an error, not one item per character)."""
        if isinstance(predictions, str) or isinstance(references, str):
            raise ValueError(f"{type(self).__name__}.update takes lists of strings, not a single string")
        for numerator, denominator in self.item_counts(predictions, references):
            self.numerator += numerator
            self.denominator += denominator

    def compute(self) -> Tensor:
        """The ratio over everything seen by all ranks, float32; nan where nothing was."""
        ratio = self.numerator / self.denominator
        return torch.where(self.denominator > 0, ratio, torch.full_like(ratio, torch.nan))
