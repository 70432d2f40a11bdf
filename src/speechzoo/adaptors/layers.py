"""The adaptors: linear (LLaSM), concat-k MLP (LLaMA-Omni), convolutional."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechzoo.adaptors.base import Adaptor
from speechzoo.names.spec import at_least


def stack_frames(states: Tensor, k: int) -> Tensor:
    """Every k consecutive frames side by side; a last group with fewer than k is dropped.

    Shape: `[N, F, D] -> [N, F // k, k * D]`.
    """
    n, frames, dim = states.shape
    return states[:, : frames // k * k].reshape(n, frames // k, k * dim)


class Linear(Adaptor):
    """LLaSM's adaptor: one affine map, no activation, no norm (`mm_projector`, official llasm.py:44).

    Args:
        stack: frames put side by side before the map; the paper's 64 decoder states need no stacking (1).
        norm: a LayerNorm of each frame before it; not in the paper, learns faster.
    """

    def __init__(self, in_dim: int, out_dim: int, stack: int = 1, norm: bool = False) -> None:
        super().__init__()
        at_least(1, "Linear", stack=stack)
        self.stack = stack
        self.norm = nn.LayerNorm(in_dim) if norm else nn.Identity()
        self.linear = nn.Linear(in_dim * stack, out_dim)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, F // stack, H], [N]`."""
        return self.linear(stack_frames(self.norm(states), self.stack)), self.out_lens(lens)

    def out_lens(self, lens: Tensor) -> Tensor:
        return lens // self.stack


class ConcatMLP(Adaptor):
    """LLaMA-Omni's adaptor: k frames side by side, two layers with ReLU (paper section 3.2, eq. 1).

    Args:
        stack: k of the paper, 5.
        hidden_dim: inner width, 2048 in the official code.
        norm: a LayerNorm of each frame before it; not in the paper, learns faster.
    """

    def __init__(self, in_dim: int, out_dim: int, stack: int = 5, hidden_dim: int = 2048, norm: bool = False) -> None:
        super().__init__()
        at_least(1, "ConcatMLP", stack=stack, hidden_dim=hidden_dim)
        self.stack = stack
        self.norm = nn.LayerNorm(in_dim) if norm else nn.Identity()
        self.linear1 = nn.Linear(in_dim * stack, hidden_dim)
        self.linear2 = nn.Linear(hidden_dim, out_dim)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, F // stack, H], [N]`."""
        return self.linear2(F.relu(self.linear1(stack_frames(self.norm(states), self.stack)))), self.out_lens(lens)

    def out_lens(self, lens: Tensor) -> Tensor:
        return lens // self.stack


class Conv(Adaptor):
    """Strided convolutions with GELU, then a linear map: overlapping windows instead of concatenation.

    Args:
        strides: stride of each layer; together they divide the frame rate (2 * 2 = 4 by default).
        hidden_dim: channels of the convolutions.
        kernel_size: frames a layer sees, odd.
    """

    def __init__(
        self, in_dim: int, out_dim: int, strides: list[int] | None = None, hidden_dim: int = 1024, kernel_size: int = 3
    ) -> None:
        super().__init__()
        at_least(1, "Conv", hidden_dim=hidden_dim, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise ValueError(f"Conv.kernel_size has to be odd, not {kernel_size}")
        self.strides = [2, 2] if strides is None else list(strides)
        for stride in self.strides:
            at_least(1, "Conv", strides=stride)
        dims = [in_dim] + [hidden_dim] * len(self.strides)
        self.convs = nn.ModuleList(
            nn.Conv1d(a, b, kernel_size, stride, padding=kernel_size // 2)
            for a, b, stride in zip(dims, dims[1:], self.strides, strict=False)
        )
        self.linear = nn.Linear(dims[-1], out_dim)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, ceil(F / strides), H], [N]`."""
        states = states.transpose(1, 2)
        for conv, stride in zip(self.convs, self.strides, strict=True):
            # Zeros past each clip's end before every layer: the same border as when the clip is alone.
            inside = torch.arange(states.shape[-1], device=states.device) < lens[:, None]
            states = F.gelu(conv(states * inside[:, None]))
            lens = -(-lens // stride)
        return self.linear(states.transpose(1, 2)), lens

    def out_lens(self, lens: Tensor) -> Tensor:
        for stride in self.strides:
            lens = -(-lens // stride)
        return lens
