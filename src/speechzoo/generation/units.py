"""Units while the answer is being written: what a stream of them is, and that of the CTC decoder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.generation.cache import GrowingLayer

if TYPE_CHECKING:
    from speechzoo.units import UnitDecoder


def spoken(decoder: UnitDecoder, states: Tensor, lens: Tensor, ids: Sequence[Tensor]) -> list[Tensor]:
    """Units of whole answers, by any decoder. Shape: `[Q, M, H], [Q], Q times [M] -> Q times [U]`."""
    if not decoder.reads_ids:
        return decoder.decode(states, lens)
    return decoder.decode(states, lens, ids=pad_sequence(list(ids), batch_first=True))  # type: ignore[call-arg]


class UnitStream(ABC):
    """Decodes a batch of answers while their states arrive; all rows advance together until they end."""

    @abstractmethod
    def push(self, states: Tensor, lens: Tensor | None = None) -> list[Tensor]:
        """The units that these states add to each row.

        What has been returned is never taken back: all pushes together give what `UnitDecoder.decode` gives.
        The stream of a decoder that `reads_ids` is also given, by keyword, `ids`, the tokens of these states, and
        `ended`, the rows whose last token is among them.

        Args:
            lens: real states of each row, padded on the right; a row with fewer than M ends here.

        Shape: `[Q, M, H], [Q] -> Q times [U]`; ids `[Q, M]`, ended `[Q]` bool on the host.

        Raises:
            ValueError: if the number of rows is not the stream's, or a row goes on after its end.
        """

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (indices into the current rows) and the memory they take."""


class CTCUnitStream(UnitStream):
    """Decodes a batch of answers state by state; see `UnitStream`.

    Only new positions are computed, against cached keys and values. `CTCUnitDecoder.decode` is this stream given
    everything at once, so the two differ in nothing but the shapes of their matrix products.

    Args:
        best: the most likely symbol at each position that new states stand for, given the caches it extends:
            `[Q, M, H] -> [Q, upsample * M]`.
        num_layers: caches, one a layer.
        upsample: positions per state.
        blank: the symbol that is no unit.
        rows: Q.
    """

    def __init__(
        self,
        best: Callable[[Tensor, list[GrowingLayer]], Tensor],
        num_layers: int,
        upsample: int,
        blank: int,
        rows: int,
    ) -> None:
        self.best, self.upsample, self.blank = best, upsample, blank
        self.cache = [GrowingLayer() for _ in range(num_layers)]
        self.last = torch.full((rows, 1), blank)  # the path's last symbol, which a repeat continues
        self.ended = torch.zeros(rows, dtype=torch.bool)

    @torch.no_grad()
    def push(self, states: Tensor, lens: Tensor | None = None) -> list[Tensor]:
        """See `UnitStream.push`."""
        rows, width = states.shape[:2]
        if rows != len(self.ended):
            raise ValueError(f"states of {rows} rows, but this stream holds {len(self.ended)}")
        given = torch.full((rows,), width) if lens is None else lens.cpu()
        if bool((self.ended & (given > 0)).any()):
            raise ValueError("a row that ended got more states: `lens` below the width of a push ends a row")
        self.ended |= given < width
        if not width:
            return [torch.empty(0, dtype=torch.long, device=states.device) for _ in range(rows)]
        best = self.best(states, self.cache)
        path = torch.cat([self.last.to(best.device), best], dim=1)
        self.last = best[:, -1:]
        fresh = (path[:, 1:] != path[:, :-1]) & (best != self.blank)
        ends = (given * self.upsample).tolist()
        return [row[:end][new[:end]] for row, new, end in zip(best, fresh, ends, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """See `UnitStream.keep`."""
        index = torch.tensor(list(rows), dtype=torch.long)
        self.ended, self.last = self.ended[index], self.last[index.to(self.last.device)]
        for layer in self.cache:
            if layer.is_initialized:
                layer.reorder_cache(index.to(layer.device))
