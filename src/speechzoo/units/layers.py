"""Causal Llama layers over states that each stand for many positions: what these share is computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, apply_rotary_pos_emb

from speechzoo.generation.cache import GrowingLayer

Source = int | Tensor
"""Positions per state, or `[Q, R]` which state each position repeats."""


class RepeatingLayer(GradientCheckpointingLayer):
    """A Llama decoder layer whose input may still be one vector per state.

    With `source`, norm and q, k, v projections run once per state; their results are repeated over the state's
    positions, where the rotary embedding and everything after it differ.
    """

    def __init__(self, layer: LlamaDecoderLayer) -> None:
        super().__init__()
        self.self_attn, self.mlp = layer.self_attn, layer.mlp
        self.input_layernorm, self.post_attention_layernorm = layer.input_layernorm, layer.post_attention_layernorm

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        source: Source | None = None,
        past: GrowingLayer | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Shape: `[Q, R, D] -> [Q, R, D]`, or `[Q, M, D] -> [Q, R, D]` with `source`; rope two `[1, R, head width]`;
        mask `[R, held + R]`, None where nothing is held."""
        attn = self.self_attn
        normed = self.input_layernorm(x)
        projected = [layer(normed) for layer in (attn.q_proj, attn.k_proj, attn.v_proj)]
        if source is not None:
            x, *projected = (repeat(t, source) for t in (x, *projected))
        q, k, v = (t.unflatten(-1, (-1, attn.head_dim)).transpose(1, 2) for t in projected)
        q, k = apply_rotary_pos_emb(q, k, *rope)
        if past is not None:
            k, v = past.update(k, v)
        x = x + attn.o_proj(attend(q, k, v, attn.scaling, mask).transpose(1, 2).flatten(2))
        return x + self.mlp(self.post_attention_layernorm(x))


class RepeatingLlama(LlamaModel):
    """Llama's layers without embedding, final norm and padding mask, over repeated states.

    Rows are padded on the right, and a causal layer never looks there, so real positions need no mask; what stands at
    padded positions means nothing.
    """

    _no_split_modules = ["RepeatingLayer"]  # noqa: RUF012  # as transformers has it

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.embed_tokens: Any = None  # the input is always states; unused weights would never get a gradient
        self.norm: Any = nn.Identity()
        self.layers = nn.ModuleList(RepeatingLayer(cast(LlamaDecoderLayer, layer)) for layer in self.layers)

    def forward(self, x: Tensor, source: Source, past: Sequence[GrowingLayer] | None = None) -> Tensor:
        """Shape: `[Q, M, D] -> [Q, R, D]`; with `past`, one cache per layer, positions continue those held there."""
        size = x.shape[1] * source if isinstance(source, int) else source.shape[1]
        start = past[0].get_seq_length() if past else 0
        steps = torch.arange(start, start + size, device=x.device)
        rope = self.rotary_emb(x, position_ids=steps[None])
        # Of float, because attention would make it so in every layer.
        mask = x.new_full((size, start + size), -torch.inf).triu(start + 1) if start else None
        for index, layer in enumerate(self.layers):
            x = layer(x, rope, source if index == 0 else None, past[index] if past else None, mask)
        return x


def repeat(x: Tensor, source: Source) -> Tensor:
    """States at every position that stands for them. Shape: `[Q, M, D] -> [Q, R, D]`."""
    if isinstance(source, int):
        return x[:, :, None].expand(-1, -1, source, -1).flatten(1, 2)
    return x.gather(1, source[..., None].expand(-1, -1, x.shape[-1]))


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """Causal attention. Shape: `[Q, heads, R, d]`, `[Q, kv heads, held + R, d]` twice, `[R, held + R]`."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
