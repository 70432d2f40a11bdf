"""How sure a corpus-level score is: percentile bootstrap over test items, seeded.

The scores are ratios of sums (WER = edits / reference words), so whole items are resampled and the ratio is formed
again; resampling per-item rates would answer another question. Source: Bisani and Ney, "Bootstrap estimates for
confidence intervals in ASR performance evaluation", ICASSP 2004, which also has the paired comparison.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
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
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
    seed: int = 0,
) -> Interval:
    """Median of the items and its interval; items of one group are drawn together, see `bootstrap_ratio`."""
    items = np.asarray(values, dtype=float)
    if items.size == 0:
        return Interval(np.nan, np.nan, np.nan)
    order = np.argsort(items, kind="stable")
    ranked, group = items[order], _group_index(items.size, groups)[order]
    medians = []
    for times in _draws(int(group.max()) + 1, resamples, seed, width=items.size):
        upto = times[:, group].cumsum(axis=1)  # items of the resample up to and including each of the ranked ones
        total = upto[:, -1:]
        middle = [ranked[(upto > place).argmax(axis=1)] for place in ((total - 1) // 2, total // 2)]
        medians.append((middle[0] + middle[1]) / 2)
    return Interval(float(np.median(items)), *_percentiles(np.concatenate(medians), confidence))


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
    index = _group_index(len(items), groups)
    sums = np.zeros((index.max(initial=-1) + 1, items.shape[1]))
    np.add.at(sums, index, items)
    return sums


def _group_index(size: int, groups: Sequence[Hashable] | None) -> np.ndarray:
    """Number of each item's group, `[size]`."""
    if groups is None:
        return np.arange(size)
    if len(groups) != size:
        raise ValueError(f"{len(groups)} groups for {size} items")
    order: dict[Hashable, int] = {}
    return np.array([order.setdefault(group, len(order)) for group in groups], dtype=int)


def _draw(sums: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Sums over resampled groups `[resamples, columns]`."""
    return np.concatenate([times @ sums for times in _draws(len(sums), resamples, seed)])


def _draws(n: int, resamples: int, seed: int, width: int | None = None) -> Iterator[np.ndarray]:
    """How often each of n groups is drawn, some resamples (rows of multinomial counts) at a time."""
    rng = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // (width or n))  # rows at a time, so that memory does not grow with the test set
    for start in range(0, resamples, chunk):
        yield rng.multinomial(n, np.full(n, 1 / n), size=min(chunk, resamples - start))


def _ratio(sums: np.ndarray) -> np.ndarray:
    numerator, denominator = sums[..., 0], sums[..., 1]
    ratio: np.ndarray = np.divide(numerator, denominator, out=np.full_like(numerator, np.nan), where=denominator > 0)
    return ratio


def _percentiles(drawn: np.ndarray, confidence: float) -> tuple[float, float]:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    tail = 50 * (1 - confidence)
    low, high = np.nanpercentile(drawn, [tail, 100 - tail])
    return float(low), float(high)
