"""Adaptors: how many positions, which frames they see, and independence of the batch."""

from __future__ import annotations

import pytest
import torch

from speechzoo.adaptors import Adaptor, ConcatMLP, Conv, Linear
from speechzoo.adaptors.layers import stack_frames

KINDS = {
    "linear": lambda: Linear(6, 5),
    "linear stacked": lambda: Linear(6, 5, stack=4),
    "concat": lambda: ConcatMLP(6, 5, stack=5, hidden_dim=7),
    "conv": lambda: Conv(6, 5, hidden_dim=7),
    "conv uneven": lambda: Conv(6, 5, strides=[3, 1, 2], hidden_dim=7, kernel_size=5),
}
RATES = {"linear": 1, "linear stacked": 4, "concat": 5, "conv": 4, "conv uneven": 6}
every = pytest.mark.parametrize("name", sorted(KINDS))


@pytest.fixture
def adaptor(name: str) -> Adaptor:
    torch.manual_seed(0)
    return KINDS[name]().eval()


@every
def test_lengths_round_down_for_stacks_and_up_for_convolutions(adaptor, name):
    lens = torch.arange(0, 26)
    rate = RATES[name]
    expected = -(-lens // rate) if name.startswith("conv") else lens // rate
    assert adaptor.out_lens(lens).equal(expected)
    for frames in (1, 7, 12, 25):
        out, out_lens = adaptor(torch.randn(1, frames, 6), torch.tensor([frames]))
        assert out.shape == (1, int(out_lens), 5) and out_lens.equal(adaptor.out_lens(torch.tensor([frames])))


@every
@torch.no_grad()
def test_a_clip_comes_out_as_alone_whatever_stands_past_its_end(adaptor):
    lens = torch.tensor([25, 13, 6, 1])
    states = torch.randn(4, 25, 6)  # noise past the ends, not zeros
    out, out_lens = adaptor(states, lens)
    for row, frames in enumerate(lens.tolist()):
        alone, length = adaptor(states[row : row + 1, :frames], lens[row : row + 1])
        assert int(length) == int(out_lens[row])
        torch.testing.assert_close(out[row, : int(length)], alone[0, : int(length)], atol=1e-6, rtol=0)


@every
def test_no_gradient_reaches_frames_past_the_end(adaptor):
    states = torch.randn(1, 30, 6, requires_grad=True)
    out, lens = adaptor(states, torch.tensor([12]))
    out[0, : int(lens)].sum().backward()
    assert states.grad[0, :12].abs().sum() > 0 and not states.grad[0, 12:].any()


@every
def test_no_clips_give_no_positions(adaptor):
    out, lens = adaptor(torch.zeros(0, 64, 6), torch.zeros(0, dtype=torch.long))
    assert out.shape[0] == 0 and out.shape[2] == 5 and len(lens) == 0


def test_stacks_hold_neighbouring_frames_and_drop_the_rest():
    states = torch.arange(14).view(1, 7, 2)
    assert stack_frames(states, 3).tolist() == [[[0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]]]


def test_linear_is_affine_and_concat_has_one_relu():
    torch.manual_seed(0)
    x, lens = torch.randn(1, 10, 6), torch.tensor([10])
    linear, concat = Linear(6, 5), ConcatMLP(6, 5, stack=5, hidden_dim=7)
    torch.testing.assert_close(linear(x, lens)[0], x @ linear.linear.weight.T + linear.linear.bias)
    inner = (x.view(1, 2, 30) @ concat.linear1.weight.T + concat.linear1.bias).clamp(min=0)
    torch.testing.assert_close(concat(x, lens)[0], inner @ concat.linear2.weight.T + concat.linear2.bias)


def test_an_even_kernel_is_refused():
    with pytest.raises(ValueError, match="odd, not 4"):
        Conv(6, 5, kernel_size=4)
