"""The promises of the samplers, for any lengths, budget and number of ranks."""

from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speechzoo.data import EvalSampler, TokenBudgetSampler

lengths_of = st.lists(st.integers(1, 400), min_size=1, max_size=80)
ranks_of = st.integers(1, 5)
budgets = st.one_of(st.none(), st.integers(1, 1500))


def ranks(kind, lengths, batch_size, max_tokens, world, **options) -> list[list[list[int]]]:
    """The batches of each rank."""
    return [list(kind(lengths, batch_size, max_tokens, rank=r, world_size=world, **options)) for r in range(world)]


def check_budget(batches, lengths, batch_size, max_tokens) -> None:
    for batch in batches:
        longest = max(lengths[max(index, ~index)] for index in batch)
        assert 1 <= len(batch) <= batch_size
        assert max_tokens is None or len(batch) * longest <= max_tokens or len(batch) == 1


@settings(deadline=None)
@given(lengths_of, st.integers(1, 9), budgets, ranks_of, st.integers(0, 3), st.integers(0, 3))
def test_training_epoch(lengths, batch_size, max_tokens, world, seed, epoch) -> None:
    size = len(TokenBudgetSampler(lengths, batch_size, max_tokens, world_size=world))
    per_rank = ranks(TokenBudgetSampler, lengths, batch_size, max_tokens, world, seed=seed, start=epoch * size)
    assert {len(batches) for batches in per_rank} == {size}
    for step in zip(*per_rank, strict=True):
        assert len({len(batch) for batch in step}) == 1  # equal rows on all ranks
    times = Counter(chain.from_iterable(chain.from_iterable(per_rank)))
    assert set(times) == set(range(len(lengths)))
    assert times.total() - len(lengths) < world  # repeats that fill the last step, fewer than ranks
    if world == 1:
        assert set(times.values()) == {1}
    check_budget(chain.from_iterable(per_rank), lengths, batch_size, max_tokens)


@settings(deadline=None)
@given(lengths_of, st.integers(1, 9), budgets, ranks_of, st.data())
def test_resume_anywhere(lengths, batch_size, max_tokens, world, data) -> None:
    def sampler(start):
        return TokenBudgetSampler(lengths, batch_size, max_tokens, 7, world - 1, world, start)

    whole = sampler(0)
    stream = list(whole)
    for epoch in (1, 2):
        whole.start = epoch * len(whole)
        stream += list(whole)
    stop = data.draw(st.integers(0, 2 * len(whole)))
    assert list(sampler(lambda: stop)) == stream[stop : stop + len(whole)]


@settings(deadline=None)
@given(lengths_of, st.integers(1, 9), budgets, ranks_of, st.booleans())
def test_evaluation(lengths, batch_size, max_tokens, world, keep_order) -> None:
    per_rank = ranks(EvalSampler, lengths, batch_size, max_tokens, world, keep_order=keep_order)
    assert len({len(batches) for batches in per_rank}) == 1
    rows = list(chain.from_iterable(chain.from_iterable(per_rank)))
    assert sorted(row for row in rows if row >= 0) == list(range(len(lengths)))
    fillers = [batch for batch in chain.from_iterable(per_rank) if batch[0] < 0]
    assert len(fillers) < world
    assert all(len(batch) == 1 and lengths[~batch[0]] == min(lengths) for batch in fillers)
    check_budget(chain.from_iterable(per_rank), lengths, batch_size, max_tokens)
    if keep_order and world == 1:
        assert rows == list(range(len(lengths)))


def test_orders_differ_between_epochs_seeds_but_not_runs() -> None:
    lengths = list(range(10, 210))
    first = TokenBudgetSampler(lengths, 4)
    assert list(first) == list(first) == list(TokenBudgetSampler(lengths, 4))
    assert list(first) != list(TokenBudgetSampler(lengths, 4, start=len(first)))
    assert list(first) != list(TokenBudgetSampler(lengths, 4, seed=1))


def test_little_padding_and_similar_lengths_on_all_ranks() -> None:
    """Twenty thousand records of log-normal length on 8 ranks: the point of the buckets."""
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 20_000).astype(int).clip(8, 2048).tolist()
    per_rank = ranks(TokenBudgetSampler, lengths, 64, 4096, 8)
    real = sum(lengths[index] for batches in per_rank for batch in batches for index in batch)
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batches in per_rank for batch in batches)
    assert real / padded > 0.85
    slowest = sum(
        max(len(batch) * max(lengths[i] for i in batch) for batch in step) for step in zip(*per_rank, strict=True)
    )
    assert padded / 8 / slowest > 0.95  # share of the time that ranks do not wait for the slowest


def test_a_long_record_gets_a_batch_of_its_own() -> None:
    batches = list(TokenBudgetSampler([10, 10, 500, 10], 8, 100))
    assert [2] in batches and sorted(map(len, batches)) == [1, 3]


def test_a_small_corpus_makes_full_batches() -> None:
    sizes = [len(batch) for batch in TokenBudgetSampler([10, 15, 20, 30, 45, 60, 90], 4)]
    assert sorted(sizes) == [3, 4]


def test_no_records() -> None:
    with pytest.raises(ValueError, match="no records"):
        TokenBudgetSampler([], 4)
    assert list(EvalSampler([], 4)) == []


def test_what_the_order_rests_on() -> None:
    order = TokenBudgetSampler([3, 4], 1, seed=5).order
    assert order == {"seed": 5, "records": 2, "positions": 7, "ranks": 1, "batches": 2}
