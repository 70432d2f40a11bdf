"""Evaluation losses over any split of the data (`test_exact_loss.py` compares one process with two)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from speechzoo.training.loss_metric import LossMean

batches_of = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1, max_size=12)


def over(batches: list[tuple[int, int]]) -> LossMean:
    """Batches of so many targets; the k-th target of a batch loses k, or 2 k where it is a unit."""
    metric = LossMean({"lm": 1.0, "ctc": 0.5})
    for lm, ctc in batches:
        sums = {"lm": torch.arange(lm).sum().float(), "ctc": 2 * torch.arange(ctc).sum().float()}
        metric.update(sums, {"lm": lm, "ctc": ctc})
    return metric


@given(batches_of, st.integers(0, 12))
def test_any_split_over_two_processes_gives_the_mean_over_targets(batches, cut) -> None:
    """Also where a process has no batch at all, or only such without targets (fillers)."""
    ranks = [over(batches[:cut]), over([*batches[cut:], (0, 0)])]

    def gather(value: torch.Tensor, group: object) -> list[torch.Tensor]:
        name = next(names)
        return [getattr(rank, name) for rank in ranks]

    names = iter(["sums", "counts"])
    together = over(batches[:cut])
    together.dist_sync_fn, together.distributed_available_fn = gather, lambda: True
    terms = [[sum(k for k in range(batch[i])) for batch in batches] for i in (0, 1)]
    counts = [sum(batch[i] for batch in batches) for i in (0, 1)]
    expected = sum(terms[0]) / max(1, counts[0]) + 0.5 * 2 * sum(terms[1]) / max(1, counts[1])
    assert float(together.compute()) == pytest.approx(expected, rel=1e-6)


def test_the_total_does_not_depend_on_what_shares_a_batch() -> None:
    """Weighing each batch's total by its targets, as frameworks would, gives another number."""
    assert float(over([(10, 0), (2, 5)]).compute()) == pytest.approx(float(over([(10, 5), (2, 0)]).compute()))
    assert float(over([]).compute()) == 0
