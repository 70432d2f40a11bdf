"""Keys and values of one attention layer, in a buffer that doubles instead of being copied, or one that stays."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, StaticLayer


class GrowingLayer(DynamicLayer):
    """transformers' dynamic cache layer with amortised growth: appending n positions costs n, not all that is held.

    Shape: keys and values `[B, heads, positions, head width]`, views of the buffers' filled part.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # transformers gives it no types

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Empty buffers of the right dtype and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self._buffers: tuple[Tensor, ...] = tuple(states[..., :0, :] for states in (key_states, value_states))
        self.keys, self.values = self._buffers
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append positions; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        held = self.get_seq_length()
        if not held:  # a prompt is kept as it is; nothing may ever follow it
            self._buffers = self.keys, self.values = key_states, value_states
            return self.keys, self.values
        size = held + key_states.shape[-2]
        if size > self._buffers[0].shape[-2]:
            self._buffers = tuple(_grown(buffer[..., :held, :], 2 * size) for buffer in self._buffers)
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[..., held:size, :] = new
        keys, values = (buffer[..., :size, :] for buffer in self._buffers)
        self.keys, self.values = keys, values
        return keys, values

    def get_seq_length(self) -> int:
        """Positions held."""
        return self.keys.shape[-2] if self.is_initialized and self.keys is not None else 0

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep some rows. Of transformers' two ways to say so, the one that layers of all kinds know."""
        if self.is_initialized:
            size = self.get_seq_length()
            self._buffers = tuple(buffer[beam_idx] for buffer in self._buffers)
            self.keys, self.values = (buffer[..., :size, :] for buffer in self._buffers)

    def reset(self) -> None:
        """Forget everything."""
        self._buffers = ()
        super().reset()


class SlotLayer(StaticLayer):
    """Keys and values of rows that each stand at a place of their own; shapes and addresses stay as they are made.

    Args:
        positions: place of each row's next token, which others move on; the same tensor for all layers. Shape: `[B]`.
        size: places of a row.
        keys, values: of what kind the buffers are. Shape: `[b, heads, n, head width]`.
    """

    keys: Tensor
    values: Tensor

    def __init__(self, positions: Tensor, size: int, keys: Tensor, values: Tensor) -> None:
        super().__init__(max_cache_len=size)
        self.positions, self.rows = positions, torch.arange(len(positions), device=positions.device)
        shape = len(positions), keys.shape[1], size
        self.keys, self.values = keys.new_zeros(*shape, keys.shape[-1]), values.new_zeros(*shape, values.shape[-1])
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def take(self, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Begin some rows anew with what a prompt left; nothing old stays, as NaN would reach through any mask."""
        for buffer, new in ((self.keys, keys), (self.values, values)):
            buffer[rows] = 0
            buffer[rows, :, : new.shape[-2]] = new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put one position into each row; returns all places, of which those after a row's own mean nothing."""
        self.keys[self.rows, :, self.positions] = key_states[:, :, 0]
        self.values[self.rows, :, self.positions] = value_states[:, :, 0]
        return self.keys, self.values

    def get_seq_length(self) -> int:
        """None that holds for all rows; models that are given positions and a mask do not use it."""
        return 0


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """The cache of a whole model; layers of another kind (sliding windows, state spaces) stay what they are."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _grown(x: Tensor, capacity: int) -> Tensor:
    """A buffer of `capacity` positions that begins with x."""
    buffer = torch.empty(*x.shape[:-2], capacity, x.shape[-1], dtype=x.dtype, device=x.device)
    buffer[..., : x.shape[-2], :] = x
    return buffer
