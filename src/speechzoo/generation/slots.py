"""A fixed number of answers side by side, each step of which has the same shapes: it can be compiled and captured.

A slot's keys and values begin at place 0 and each slot stands at a place of its own, so that a new question can take
the place of an answer that ended, wherever the others are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import Cache

from speechzoo.generation.cache import SlotLayer

Read = Callable[[Tensor, Tensor | None, Tensor, Cache], Tensor]
"""`(embeds [b, n, H], mask, position_ids [b, n], cache) -> states [b, n, H]`, see `token_steps`."""

ROUND = 128  # places; a cache that is seldom made anew is seldom captured anew


class Slots:
    """What is held of some answers, and the step that all of them take together.

    On a GPU the step is captured as a CUDA graph: the CPU launches one thing a token instead of thousands. It is
    captured here and not by `torch.compile(mode="reduce-overhead")`, whose graphs belong to one thread (the demo
    answers in several) and whose results the next step overwrites.

    Args:
        read, head, embed: see `token_steps`; the mask that `read` gets is `[b, 1, 1, places]`, 0 or -inf.
        empty: makes a cache for a prompt, all of whose layers are `GrowingLayer`.
        rows: slots.
        compiled: run the step through `torch.compile`.
        key: whoever keeps these slots for a later answer has to find the same key.
        most: places that `read` knows, None where it knows any number.

    Attributes:
        ids: the token each slot reads next. Shape: `[rows]`.
        positions: where it stands. Shape: `[rows]`.
        costly: whether making these slots anew would take long.
        late: steps that are launched before the tokens of one are read back.
    """

    def __init__(
        self,
        read: Read,
        head: Callable[[Tensor], Tensor],
        embed: Callable[[Tensor], Tensor],
        empty: Callable[[], Cache],
        rows: int,
        device: torch.device,
        compiled: bool = False,
        key: Hashable = None,
        most: int | None = None,
    ) -> None:
        self.read, self.head, self.embed, self.empty, self.rows, self.key = read, head, embed, empty, rows, key
        self.most = sys.maxsize if most is None else most
        self.ids = torch.zeros(rows, dtype=torch.long, device=device)
        self.positions, self.numbers = torch.zeros_like(self.ids), torch.arange(rows, device=device)
        self.cache: Any = None
        self.places = torch.zeros(0, dtype=torch.long, device=device)
        self.costly, self.late = compiled or device.type == "cuda", int(device.type == "cuda")
        self._compute: Callable[[], tuple[Tensor, Tensor]] = self._step
        if compiled:
            self._compute = torch.compile(self._step, dynamic=False)
        self._graph: Any = None
        self._out: tuple[Tensor, Tensor] | None = None

    def admit(self, slots: Sequence[int], prompts: Sequence[Tensor], more: int) -> Tensor:
        """Read prompts into slots, whatever was in them; returns the state after each prompt.

        Prompts are padded on the right: causal layers do not look there, and the answer's keys take these places.

        Args:
            prompts: embeddings, `[S, H]` each.
            more: places that an answer may take.

        Shape: `-> [b, H]`.
        """
        embeds = pad_sequence(list(prompts), batch_first=True)
        number, width = embeds.shape[:2]
        lens = torch.tensor([len(prompt) for prompt in prompts], device=embeds.device)
        held: Any = self.empty()
        states = self.read(embeds, None, torch.arange(width, device=embeds.device).expand(number, -1), held)
        index = torch.tensor(slots, device=embeds.device)
        self._make_room(width + more, held)
        for layer, new in zip(self.cache.layers, held.layers, strict=True):
            layer.take(index, new.keys, new.values)
        self.positions[index] = lens
        return states[torch.arange(number, device=embeds.device), lens - 1]

    def _make_room(self, size: int, like: Any) -> None:
        if min(size, self.most) <= len(self.places):
            return
        size = min(-(-size // ROUND) * ROUND, self.most)  # an idle slot, too, stands at a place that `read` knows
        self.places = torch.arange(size, device=self.ids.device)
        layers: list[Any] = [SlotLayer(self.positions, size, layer.keys, layer.values) for layer in like.layers]
        for layer, old in zip(layers, self.cache.layers if self.cache is not None else [], strict=False):
            layer.take(self.numbers, old.keys, old.values)
        self.cache, self._graph, self._out = Cache(layers=layers), None, None

    def advance(self) -> tuple[Tensor, Tensor]:
        """Read `ids`, one token in every slot, and step on. States and logits, which the next call may overwrite.

        Shape: `[rows, H], [rows, V]`.
        """
        if self.ids.device.type != "cuda":
            return self._compute()
        if self._graph is None:
            self._capture()
        self._graph.replay()
        assert self._out is not None
        return self._out

    def _step(self) -> tuple[Tensor, Tensor]:
        embeds = self.embed(self.ids[:, None])
        mask = embeds.new_zeros(self.rows, len(self.places))
        mask = mask.masked_fill(self.places > self.positions[:, None], -torch.inf)[:, None, None]
        states = self.read(embeds, mask, self.positions[:, None], self.cache)[:, -1]
        logits = self.head(states)
        self.positions.add_(1).clamp_(max=len(self.places) - 1)  # idle slots go on and on
        return states, logits

    def _capture(self) -> None:
        """Warm up on a stream of its own, as torch asks for, then capture; the slots are as before."""
        positions = self.positions.clone()
        cached = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # a graph must not read casts of weights that are let go
        try:
            with torch.cuda.device(self.ids.device):
                main, side = torch.cuda.current_stream(), torch.cuda.Stream()
                side.wait_stream(main)
                with torch.cuda.stream(side):
                    for _ in range(3):
                        self._compute()
                main.wait_stream(side)
                self.positions.copy_(positions)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    self._out = self._compute()
            self._graph = graph
        finally:
            torch.set_autocast_cache_enabled(cached)
