"""Adaptors that look: SALMONN's Q-Former over windows, and means that attend to the whole clip."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from speechzoo.adaptors.base import Adaptor
from speechzoo.adaptors.pooled import MeanPool, groups
from speechzoo.names.spec import at_least


class QFormer(Adaptor):
    """SALMONN's window-level Q-Former (arXiv 2310.13289, section 3.1): trained queries that attend to one window each.

    The clip is cut into windows of `window` frames, each gives `queries` positions. In the paper windows of 17 frames
    (0.34 s), one query, two BERT layers of width 768, here transformers' Q-Former of BLIP-2 with a cross-attention in
    each layer, from random weights.

    Args:
        window: frames; a last window with fewer is seen as it is.
        queries: positions per window. A single one attends to nobody but itself: the weights by which queries look at
            each other then stay as they were born, as in the paper.
        dim, num_layers, num_heads, ffn_dim: of the Q-Former.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        window: int = 17,
        queries: int = 1,
        dim: int = 768,
        num_layers: int = 2,
        num_heads: int = 12,
        ffn_dim: int = 3072,
    ) -> None:
        super().__init__()
        sizes = {"dim": dim, "num_layers": num_layers, "num_heads": num_heads, "ffn_dim": ffn_dim}
        at_least(1, "QFormer", window=window, queries=queries, **sizes)
        if dim % num_heads:
            raise ValueError(f"QFormer: dim {dim} has to be a multiple of num_heads {num_heads}")
        self.window = window
        config = Blip2QFormerConfig(
            hidden_size=dim,
            num_hidden_layers=num_layers,
            num_attention_heads=num_heads,
            intermediate_size=ffn_dim,
            encoder_hidden_size=in_dim,
            cross_attention_frequency=1,
        )
        self.norm = nn.LayerNorm(in_dim)
        self.queries = nn.Parameter(torch.empty(1, queries, dim).normal_(std=config.initializer_range))
        self.qformer = Blip2QFormerModel(config)
        self.linear = nn.Linear(dim, out_dim)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, ceil(F / window) * queries, H], [N]`."""
        windows = groups(self.norm(states), self.window)  # [N, W, window, D]
        n, count = windows.shape[:2]
        if not n:  # transformers cannot reshape nothing
            return self.linear.weight.new_zeros(0, count * self.queries.shape[1], self.linear.out_features), lens
        frames = torch.arange(count * self.window, device=states.device).view(count, self.window)
        inside = frames < lens[:, None, None]
        inside = inside | (frames - frames[:, :1] < 1)  # a window past the end sees something, and is not used
        out = self.qformer(
            query_embeds=self.queries.expand(n * count, -1, -1),
            encoder_hidden_states=windows.flatten(0, 1),
            encoder_attention_mask=inside.flatten(0, 1).long(),
        ).last_hidden_state
        return self.linear(out).view(n, count * self.queries.shape[1], -1), self.out_lens(lens)

    def out_lens(self, lens: Tensor) -> Tensor:
        return -(-lens // self.window) * self.queries.shape[1]


class CrossAttention(MeanPool):
    """The mean of every k frames, which then attends to all frames of the clip: pooling that can pick what it wants.

    ```
    mean of k -> norm -> + attention(to the norms of all frames) -> norm -> MLP -> [H]
    ```
    No paper's; to compare with pooling alone and with the Q-Former's windows.

    Args:
        stack: k.
        hidden_dim: inner width of the MLP, None for one linear map.
        num_heads: of the attention.
    """

    def __init__(
        self, in_dim: int, out_dim: int, stack: int = 5, hidden_dim: int | None = 2048, num_heads: int = 8
    ) -> None:
        super().__init__(in_dim, out_dim, stack, hidden_dim)
        at_least(1, "CrossAttention", num_heads=num_heads)
        if in_dim % num_heads:
            raise ValueError(f"CrossAttention: num_heads {num_heads} has to divide the encoder's width {in_dim}")
        self.norm_in = nn.LayerNorm(in_dim)
        self.attention = nn.MultiheadAttention(in_dim, num_heads, batch_first=True)

    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """Shape: `[N, F, D], [N] -> [N, ceil(F / stack), H], [N]`."""
        if not len(states):  # torch's attention takes no empty batch
            return super().forward(states, lens)
        frames = self.norm_in(states)
        outside = torch.arange(states.shape[1], device=states.device) >= lens.clamp(min=1)[:, None]
        x = self.pooled(frames, lens)
        x = x + self.attention(x, frames, frames, key_padding_mask=outside, need_weights=False)[0]
        return self.project(self.norm(x)), self.out_lens(lens)
