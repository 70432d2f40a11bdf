"""Score of discrete speech units."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from speechzoo.metrics.ratio import RatioMetric, edit_distance
from speechzoo.types import IGNORE


class UnitErrorRate(RatioMetric):
    """Unit edits divided by reference units, both summed over the corpus; may exceed 1.

    Items are integer sequences or tensors `[U]`; `IGNORE` padding is dropped. Repeats are compared as they are:
    give both sides de-duplicated, as CTC predicts them.
    """

    higher_is_better = False

    def counts(self, prediction: Sequence[int] | Tensor, reference: Sequence[int] | Tensor) -> tuple[float, int]:
        units = _units(reference)
        return edit_distance(units, _units(prediction)), len(units)


def _units(values: Sequence[int] | Tensor) -> list[int]:
    values = values.tolist() if isinstance(values, Tensor) else values
    return [int(value) for value in values if value != IGNORE]
