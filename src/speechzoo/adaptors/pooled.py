"""Adaptors of Qwen2-Audio (mean pooling) and Ultravox (stack, norm, SwiGLU)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechzoo.adaptors.base import Adaptor
from speechzoo.names.spec import at_least


def silenced(states: Tensor, lens: Tensor) -> Tensor:
    """States with 0 past each length. Shape: `[N, F, D], [N] -> [N, F, D]`."""
    inside = torch.arange(states.shape[1], device=states.device) < lens[:, None]
    return states.masked_fill(~inside[..., None], 0.0)


def groups(states: Tensor, k: int) -> Tensor:
    """Every k consecutive frames as a group, zeros after the last one. Shape: `[N, F, D] -> [N, ceil(F / k), k, D]`."""
    n, frames, dim = states.shape
    return F.pad(states, (0, 0, 0, -frames % k)).reshape(n, -(-frames // k), k, dim)


class MeanPool(Adaptor):
    """Qwen2-Audio's way (arXiv 2407.10759, section 2): the mean of every k frames, a LayerNorm, a map to the LLM.

    There pooling and norm end the encoder, k is 2, and the map is linear. A last group with fewer frames is averaged
    over those it has.

    Args:
        stack: k.
        hidden_dim: inner width of an MLP with GELU instead of the linear map; None as in the paper.
    """

    def __init__(self, in_dim: int, out_dim: int, stack: int = 2, hidden_dim: int | None = None) -> None:
        super().__init__()
        at_least(1, "MeanPool", stack=stack, hidden_dim=hidden_dim)
        self.stack = stack
        self.norm = nn.LayerNorm(in_dim)
        self.project = (
            nn.Linear(in_dim, out_dim)
            if hidden_dim is None
            else nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, out_dim))
        )

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, ceil(F / stack), H], [N]`."""
        return self.project(self.norm(self.pooled(states, lens))), self.out_lens(lens)

    def pooled(self, states: Tensor, lens: Tensor) -> Tensor:
        """The mean of each group's frames. Shape: `[N, F, D], [N] -> [N, ceil(F / stack), D]`."""
        total = groups(silenced(states, lens), self.stack).sum(dim=2)
        first = torch.arange(total.shape[1], device=states.device) * self.stack
        return total / (lens[:, None] - first).clamp(1, self.stack)[..., None]

    def out_lens(self, lens: Tensor) -> Tensor:
        return -(-lens // self.stack)


class StackSwiGLU(Adaptor):
    """Ultravox's projector (fixie-ai/ultravox, `UltravoxProjector`): k frames side by side, RMSNorm, SwiGLU, RMSNorm.

    ```
    [k * D] -> norm -> linear -> halves (x, gate): silu(gate) * x -> (norm) -> linear -> (norm) -> [H]
    ```
    The last group is filled up with zeros; no layer has a bias.

    Args:
        stack: k, 8 there.
        hidden_dim: width of the first map, half of which comes out of the SwiGLU; 4096 for Llama-3.1-8B there.
        norm_init: weights of the norms at first, 0.4 there: embeddings of text are small.
        norm_mid: the second norm stands before the last map, as from Ultravox 0.5 on, not after it.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        stack: int = 8,
        hidden_dim: int = 4096,
        norm_init: float = 0.4,
        norm_mid: bool = True,
    ) -> None:
        super().__init__()
        at_least(1, "StackSwiGLU", stack=stack, hidden_dim=hidden_dim)
        if hidden_dim % 2:
            raise ValueError(f"StackSwiGLU.hidden_dim has to be even, not {hidden_dim}")
        self.stack, self.norm_mid = stack, norm_mid
        self.norm_pre = nn.RMSNorm(in_dim * stack, eps=1e-6)
        self.linear1 = nn.Linear(in_dim * stack, hidden_dim, bias=False)
        self.norm_post = nn.RMSNorm(hidden_dim // 2 if norm_mid else out_dim, eps=1e-6)
        self.linear2 = nn.Linear(hidden_dim // 2, out_dim, bias=False)
        for norm in (self.norm_pre, self.norm_post):
            nn.init.constant_(norm.weight, norm_init)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, ceil(F / stack), H], [N]`."""
        x = self.linear1(self.norm_pre(groups(silenced(states, lens), self.stack).flatten(2)))
        x, gate = x.chunk(2, dim=-1)
        x = F.silu(gate) * x
        x = self.linear2(self.norm_post(x)) if self.norm_mid else self.norm_post(self.linear2(x))
        return x, self.out_lens(lens)

    def out_lens(self, lens: Tensor) -> Tensor:
        return -(-lens // self.stack)
