"""Which states stand for an answer."""

from __future__ import annotations

import pytest
import torch

from speechzoo.models.llama_omni import answer_states


@pytest.mark.parametrize(
    ("align", "expected"),
    [
        ("predict", [[1, 2, 3], [5, 6, 0], [102, 0, 0]]),  # from the last prompt position on
        ("label", [[2, 3, 4], [6, 7, 0], [103, 0, 0]]),  # the answer's own positions
    ],
)
def test_states_by_hand(align, expected):
    """Two answers of row 0 and one of row 1; the state of position s in row b is 100 b + s."""
    hidden = (torch.arange(9) + 100 * torch.arange(2)[:, None]).float()[..., None]
    turns = torch.tensor([[0, 0, 1, 1, 1, 0, 2, 2, 0], [0, 0, 0, 1, 0, 2, 2, 2, 2]])
    states, lens = answer_states(hidden, turns, torch.tensor([[0, 1], [0, 2], [1, 1]]), align)
    assert states[..., 0].tolist() == expected
    assert lens.tolist() == [3, 2, 1]


def test_gradients_reach_the_states_of_the_answer_only():
    hidden = torch.randn(1, 6, 2, requires_grad=True)
    turns = torch.tensor([[0, 0, 0, 1, 1, 0]])
    answer_states(hidden, turns, torch.tensor([[0, 1]]), "predict")[0].sum().backward()
    assert hidden.grad[0, :, 0].tolist() == [0, 0, 1, 1, 0, 0]
