"""Adaptors: how many positions, which frames they see, and independence of the batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from speechzoo.adaptors import Adaptor, ConcatMLP, Conv, CrossAttention, Linear, MeanPool, QFormer, StackSwiGLU
from speechzoo.adaptors.layers import stack_frames

SMALL_QFORMER = {"dim": 8, "num_layers": 2, "num_heads": 2, "ffn_dim": 12}

KINDS = {
    "linear": lambda: Linear(6, 5),
    "linear stacked": lambda: Linear(6, 5, stack=4),
    "concat": lambda: ConcatMLP(6, 5, stack=5, hidden_dim=7),
    "conv": lambda: Conv(6, 5, hidden_dim=7),
    "conv uneven": lambda: Conv(6, 5, strides=[3, 1, 2], hidden_dim=7, kernel_size=5),
    "mean": lambda: MeanPool(6, 5),
    "mean, mlp": lambda: MeanPool(6, 5, stack=3, hidden_dim=7),
    "swiglu": lambda: StackSwiGLU(6, 5, hidden_dim=8),
    "swiglu, norm last": lambda: StackSwiGLU(6, 5, stack=4, hidden_dim=8, norm_mid=False),
    "qformer": lambda: QFormer(6, 5, window=4, **SMALL_QFORMER),
    "qformer, 2 queries": lambda: QFormer(6, 5, window=10, queries=2, **SMALL_QFORMER),
    "attention": lambda: CrossAttention(6, 5, num_heads=2, hidden_dim=7),
}
RATES = {"linear": 1, "linear stacked": 4, "concat": 5, "conv": 4, "conv uneven": 6, "mean": 2, "mean, mlp": 3}
RATES |= {"swiglu": 8, "swiglu, norm last": 4, "qformer": 4, "qformer, 2 queries": 10, "attention": 5}
DOWN = ("linear", "concat")  # the rest of a group is dropped; the other kinds keep it
every = pytest.mark.parametrize("name", sorted(KINDS))


@pytest.fixture
def adaptor(name: str) -> Adaptor:
    torch.manual_seed(0)
    return KINDS[name]().eval()


@every
def test_lengths_round_down_for_the_papers_stacks_and_up_for_the_rest(adaptor, name):
    lens = torch.arange(0, 26)
    rate = RATES[name]
    expected = lens // rate if name.startswith(DOWN) else -(-lens // rate) * (2 if "2 queries" in name else 1)
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


def test_a_mean_is_of_the_frames_there_are():
    """Frames 1, 3 | 5: the last group has one frame, and noise stands behind it."""
    mean = MeanPool(2, 2)
    states = torch.tensor([[[1.0, 10.0], [3.0, 20.0], [5.0, 30.0], [7e3, 9e3]]])
    assert mean.pooled(states, torch.tensor([3])).tolist() == [[[2.0, 15.0], [5.0, 30.0]]]
    expected = mean.project(F.layer_norm(torch.tensor([[2.0, 15.0], [5.0, 30.0]]), (2,)))
    torch.testing.assert_close(mean(states, torch.tensor([3]))[0][0], expected)


@pytest.mark.parametrize("norm_mid", [True, False])
def test_swiglu_gates_one_half_by_the_other(norm_mid):
    torch.manual_seed(0)
    adaptor = StackSwiGLU(3, 4, stack=2, hidden_dim=6, norm_mid=norm_mid)
    x = torch.randn(1, 3, 3)
    stacked = torch.cat([x[0, :2].flatten()[None], torch.cat([x[0, 2], torch.zeros(3)])[None]])

    def norm(values):
        return 0.4 * values / (values.pow(2).mean(dim=-1, keepdim=True) + 1e-6).sqrt()

    inner = norm(stacked) @ adaptor.linear1.weight.T
    inner = inner[:, :3] * inner[:, 3:] * torch.sigmoid(inner[:, 3:])
    expected = norm(inner) @ adaptor.linear2.weight.T if norm_mid else norm(inner @ adaptor.linear2.weight.T)
    torch.testing.assert_close(adaptor(x, torch.tensor([3]))[0][0], expected)
    with pytest.raises(ValueError, match="even, not 7"):
        StackSwiGLU(3, 4, hidden_dim=7)


@torch.no_grad()
def test_a_query_sees_its_window_alone():
    torch.manual_seed(0)
    adaptor = QFormer(6, 5, window=4, **SMALL_QFORMER).eval()
    states, lens = torch.randn(1, 12, 6), torch.tensor([12])
    before = adaptor(states, lens)[0]
    states[0, 4:8] += 1.0 * torch.randn(4, 6)
    changed = (adaptor(states, lens)[0] - before).abs().amax(dim=-1)[0]
    assert changed[1] > 1e-4 and changed[0] == changed[2] == 0
    with pytest.raises(ValueError, match="multiple of num_heads"):
        QFormer(6, 5, dim=10, num_heads=4)
    with pytest.raises(ValueError, match="num_heads 4 has to divide the encoder's width 6"):
        CrossAttention(6, 5, num_heads=4)


@torch.no_grad()
def test_a_mean_attends_to_the_whole_clip():
    """By hand, one head: softmax(q k / sqrt(d)) over all frames, added to the mean."""
    torch.manual_seed(0)
    adaptor = CrossAttention(4, 3, stack=2, hidden_dim=None, num_heads=1)
    states = torch.randn(1, 4, 4)
    frames = F.layer_norm(states[0], (4,))
    query = frames.view(2, 2, 4).mean(dim=1)
    q, k, v = (
        rows @ weight.T + bias
        for rows, weight, bias in zip(
            (query, frames, frames),
            adaptor.attention.in_proj_weight.chunk(3),
            adaptor.attention.in_proj_bias.chunk(3),
            strict=True,
        )
    )
    seen = adaptor.attention.out_proj((q @ k.T / 2).softmax(dim=-1) @ v)
    expected = adaptor.project(F.layer_norm(query + seen, (4,)))
    torch.testing.assert_close(adaptor(states, torch.tensor([4]))[0][0], expected)
