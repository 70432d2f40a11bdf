"""The scaling of the token-exact loss, by arithmetic (`test_exact_loss.py` trains with it)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechzoo.training.exact_loss import global_counts, step_loss


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    accumulate=st.integers(1, 3),
    weight=st.floats(0.1, 3.0),
)
def test_averaging_over_ranks_and_micro_batches_gives_the_mean_over_targets(sizes, accumulate, weight):
    """Whatever the split, also with micro-batches that have no target at all."""
    world = -(-len(sizes) // accumulate)
    targets = [torch.arange(1.0, n + 1) for n in sizes + [0] * (world * accumulate - len(sizes))]
    count = sum(map(len, targets))
    shares = [step_loss({"lm": t.sum()}, {"lm": count}, {"lm": weight}, world, accumulate) for t in targets]
    expected = weight * float(torch.cat(targets).sum()) / max(1, count)
    assert float(sum(shares)) / (world * accumulate) == pytest.approx(expected, rel=1e-5)


def test_losses_are_weighed_by_name():
    sums = {"lm": torch.tensor(6.0), "ctc": torch.tensor(10.0)}
    assert float(step_loss(sums, {"lm": 3, "ctc": 5}, {"lm": 1.0, "ctc": 0.5}, 1, 1)) == pytest.approx(3.0)


def test_a_single_process_counts_for_itself():
    assert global_counts({"lm": 3, "ctc": 0}, torch.device("cpu")) == {"lm": 3, "ctc": 0}
