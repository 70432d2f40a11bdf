"""Bootstrap intervals: known cases, scipy's own bootstrap, coverage on simulated test sets."""

from __future__ import annotations

import math

import numpy as np
import pytest

from speechzoo.metrics import bootstrap_median, bootstrap_ratio, paired_bootstrap


def test_ratio_is_pooled_and_interval_contains_it():
    counts = [(1, 1), (0, 9)]
    value, low, high = bootstrap_ratio(counts)
    assert value == pytest.approx(0.1)
    assert (low, high) == (0, 1)  # a resample may hold either item twice


def test_degenerate_cases():
    assert bootstrap_ratio([(0, 4)] * 5) == (0, 0, 0)
    assert all(math.isnan(x) for x in bootstrap_ratio([]))
    assert all(math.isnan(x) for x in bootstrap_ratio([(3, 0)]))
    assert all(math.isnan(x) for x in bootstrap_median([]))
    assert bootstrap_ratio([(1, 2), (5, 0)]).value == 3  # insertions of an empty reference still count


def test_same_seed_same_interval():
    counts = [(i % 3, 4 + i) for i in range(30)]
    assert bootstrap_ratio(counts, seed=1) == bootstrap_ratio(counts, seed=1)
    assert bootstrap_ratio(counts, seed=1) != bootstrap_ratio(counts, seed=2)


def test_agrees_with_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    words = rng.integers(4, 12, size=60)
    errors = rng.binomial(words, 0.2)
    other = stats.bootstrap(
        (errors, words),
        lambda e, w, axis: e.sum(axis=axis) / w.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    ours = bootstrap_ratio(list(zip(errors, words, strict=True)), resamples=20_000)
    assert ours.low == pytest.approx(other.low, abs=0.004)
    assert ours.high == pytest.approx(other.high, abs=0.004)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        words = rng.integers(5, 10, size=50)
        errors = rng.binomial(words, 0.3)
        _, low, high = bootstrap_ratio(list(zip(errors, words, strict=True)), resamples=500, seed=trial)
        hits += low <= 0.3 <= high
    assert 0.89 <= hits / 200 <= 0.99


def test_groups_widen_the_interval_as_fewer_observations_would():
    counts = [(i % 2, 1) for i in range(20)]
    doubled = bootstrap_ratio(counts * 2, groups=list(range(20)) * 2)
    assert doubled == bootstrap_ratio(counts)
    independent = bootstrap_ratio(counts * 2)
    assert independent.high - independent.low < doubled.high - doubled.low


def test_large_test_sets_are_drawn_in_chunks():
    value, low, high = bootstrap_ratio([(i % 2, 1) for i in range(30_000)], resamples=200)
    assert value == 0.5
    assert 0.49 < low < 0.5 < high < 0.51


def test_median():
    value, low, high = bootstrap_median([1.0, 2.0, 3.0, 4.0, 100.0])
    assert value == 3
    assert low >= 1 and 3 < high <= 100


def test_paired_difference_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(0)
    hard = rng.integers(0, 9, size=40)  # errors shared by both systems vary far more than the systems differ
    a, b = [(int(e), 10) for e in hard], [(int(e) + (i % 2), 10) for i, e in enumerate(hard)]
    alone_a, alone_b = bootstrap_ratio(a), bootstrap_ratio(b)
    assert alone_a.high > alone_b.low
    pair = paired_bootstrap(a, b)
    assert pair.value == pytest.approx(-0.05)
    assert pair.high < 0 and pair.p < 0.01


def test_paired_without_difference():
    same = [(1, 2), (0, 3), (2, 2)]
    assert paired_bootstrap(same, same) == (0, 0, 0, 1)
    assert all(math.isnan(x) for x in paired_bootstrap([], []))


def test_p_is_about_uniform_when_systems_are_equal():
    rng = np.random.default_rng(5)
    small = 0
    for trial in range(200):
        a, b = rng.binomial(10, 0.3, size=(2, 40))
        p = paired_bootstrap([(x, 10) for x in a], [(x, 10) for x in b], resamples=400, seed=trial).p
        small += p < 0.05
    assert small / 200 < 0.11


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match="same items: 1 against 2"):
        paired_bootstrap([(1, 1)], [(1, 1), (1, 1)])
    with pytest.raises(ValueError, match="confidence"):
        bootstrap_ratio([(1, 2)], confidence=95)
    with pytest.raises(ValueError, match="1 groups for 2 items"):
        bootstrap_ratio([(1, 2), (1, 2)], groups=["a"])


def test_median_of_groups_is_that_of_whole_groups_drawn():
    values = [1.0, 2.0, 3.0, 4.0, 100.0, 7.0]
    assert bootstrap_median(values, groups=range(6)) == bootstrap_median(values)
    # One question asked a hundred times is one observation: its repeats may all be missing, or all be there.
    repeated = [1.0] * 100 + [2.0] * 3
    groups = [0] * 100 + [1, 2, 3]
    assert bootstrap_median(repeated).high == 1
    assert bootstrap_median(repeated, groups) == (1, 1, 2)
    with pytest.raises(ValueError, match="1 groups for 2 items"):
        bootstrap_median([1.0, 2.0], groups=["a"])


def test_median_of_groups_against_plain_resampling():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 12, size=40)
    values = rng.normal(size=40) + groups
    found = bootstrap_median(values, groups.tolist(), resamples=4000)
    names = np.unique(groups)
    drawn = []
    for _ in range(4000):
        picked = rng.choice(names, size=len(names))
        drawn.append(np.median(np.concatenate([values[groups == name] for name in picked])))
    assert found.value == np.median(values)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=0.5)
