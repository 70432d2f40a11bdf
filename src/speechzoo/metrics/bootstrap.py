"""How sure a corpus-level score is: percentile bootstrap over test items, seeded.

The scores are ratios of sums (WER = edits / reference words), so whole items are resampled and the ratio is formed
again; resampling per-item rates would answer another question. Source: Bisani and Ney, "Bootstrap estimates for
confidence intervals in ASR performance evaluation", ICASSP 2004, which also has the paired comparison.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 5000
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """A score and its confidence interval; all nan where nothing was measured."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """Score of A minus score of B on the same items."""

    value: float
    low: float
    high: float
    p: float  # two-sided: twice the smaller share of resamples on either side of 0, ties on both; 1 = no difference


def bootstrap_ratio(
    counts: Sequence[tuple[float, float]],
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Interval of `sum of numerators / sum of denominators`.

    Args:
        counts: (numerator, denominator) of each item, as `RatioMetric.item_counts` gives them.
        groups: items of one group are drawn together (one question asked at two speeds is not two observations).
        resamples: number of resampled test sets.
        confidence: mass of the interval, between 0 and 1.
        seed: of the resampling.
    """
    sums = _group_sums(np.asarray(counts, dtype=float).reshape(-1, 2), groups)
    value = _ratio(sums.sum(axis=0))
    if np.isnan(value):
        return Interval(np.nan, np.nan, np.nan)
    drawn = _ratio(_draw(sums, resamples, seed))
    return Interval(float(value), *_percentiles(drawn, confidence))


def bootstrap_median(
    values: Sequence[float], resamples: int = RESAMPLES, confidence: float = CONFIDENCE, seed: int = 0
) -> Interval:
    """Median of the items and its interval."""
    items = np.asarray(values, dtype=float)
    if items.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    index = np.random.default_rng(seed).integers(0, items.size, size=(resamples, items.size))
    return Interval(float(np.median(items)), *_percentiles(np.median(items[index], axis=1), confidence))


def paired_bootstrap(
    counts_a: Sequence[tuple[float, float]],
    counts_b: Sequence[tuple[float, float]],
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Difference:
    """Difference of two systems' ratios on the same items, which are resampled together.

    Raises:
        ValueError: if the systems did not answer the same number of items.
    """
    if len(counts_a) != len(counts_b):
        raise ValueError(f"a paired bootstrap needs the same items: {len(counts_a)} against {len(counts_b)}")
    both = np.concatenate([np.asarray(c, dtype=float).reshape(-1, 2) for c in (counts_a, counts_b)], axis=1)
    sums = _group_sums(both, groups)
    total = sums.sum(axis=0)
    value = _ratio(total[:2]) - _ratio(total[2:])
    if np.isnan(value):
        return Difference(np.nan, np.nan, np.nan, np.nan)
    drawn = _draw(sums, resamples, seed)
    differences = _ratio(drawn[:, :2]) - _ratio(drawn[:, 2:])
    differences = differences[~np.isnan(differences)]
    # Ties count on both sides, and one resample is added to each, so that p is never 0 by lack of resamples.
    tails = [(1 + np.sum(differences <= 0)), (1 + np.sum(differences >= 0))]
    p = min(1.0, 2 * min(tails) / (1 + differences.size))
    return Difference(float(value), *_percentiles(differences, confidence), float(p))


def _group_sums(items: np.ndarray, groups: Sequence[Hashable] | None) -> np.ndarray:
    if groups is None:
        return items
    if len(groups) != len(items):
        raise ValueError(f"{len(groups)} groups for {len(items)} items")
    order: dict[Hashable, int] = {}
    index = [order.setdefault(group, len(order)) for group in groups]
    sums = np.zeros((len(order), items.shape[1]))
    np.add.at(sums, index, items)
    return sums


def _draw(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over resampled groups `[resamples, columns]`; a resample is a row of multinomial counts."""
    n, rng = len(sums), np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // n)  # rows at a time, so that memory does not grow with the test set
    sizes = [min(chunk, resamples - start) for start in range(0, resamples, chunk)]
    return np.concatenate([rng.multinomial(n, np.full(n, 1 / n), size=size) @ sums for size in sizes])


def _ratio(sums: np.ndarray) -> np.ndarray:
    numerator, denominator = sums[..., 0], sums[..., 1]
    return np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
