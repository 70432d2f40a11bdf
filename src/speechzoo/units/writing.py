"""Units written one after the other while the text is still being read: the autoregressive decoder's stream."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from speechzoo.generation.cache import growing_cache
from speechzoo.generation.sampling import Chooser
from speechzoo.generation.units import UnitStream
from speechzoo.types import present

if TYPE_CHECKING:
    from speechzoo.units.autoregressive import ARUnitDecoder


@dataclass
class Pen:
    """One answer that is being written."""

    number: int  # of the row, as it was when the stream began
    unread: deque[tuple[Tensor, int]] = field(default_factory=deque)  # embeddings [n, D], and units to write after them
    left: int = 0  # units still to write before more is read
    last: int | None = None  # unit that was written and not yet read again
    closes: bool = False  # all of the text is in `unread`, or was read


class Desk:
    """Rows that share a key-value cache, each at a place of its own.

    A call of the speech LM takes from each row what is due there, a block of text or the unit written last, padded on
    the right; a mask keeps these gaps out of later looks. A row in a batch is so what it is alone.

    Args:
        decoder: whose speech LM reads and writes.
        pens: of the rows.
    """

    def __init__(self, decoder: ARUnitDecoder, pens: list[Pen]) -> None:
        self.decoder, self.pens = decoder, pens
        self.cache = growing_cache(decoder.speech_lm.config)
        device = decoder.unit_embed.weight.device
        self.mask = torch.ones(len(pens), 0, dtype=torch.bool, device=device)  # [b, held]
        self.places = torch.zeros(len(pens), dtype=torch.long, device=device)  # [b] of each row's next position

    def keep(self, at: list[int]) -> None:
        """Drop all rows but these, and the memory they take."""
        if len(at) == len(self.pens):
            return
        index = torch.tensor(at, dtype=torch.long, device=self.places.device)
        self.pens = [self.pens[i] for i in at]
        self.mask, self.places = self.mask[index], self.places[index]
        self.cache.reorder_cache(index)  # type: ignore[arg-type]  # wants the name LongTensor

    def part(self, at: list[int]) -> Desk:
        """These rows on a desk of their own; here nothing changes."""
        other = Desk(self.decoder, [self.pens[i] for i in at])
        index = torch.tensor(at, dtype=torch.long, device=self.places.device)
        other.mask, other.places = self.mask[index], self.places[index]
        other.cache = deepcopy(self.cache)
        other.cache.reorder_cache(index)  # type: ignore[arg-type]  # wants the name LongTensor
        return other

    def write(self, choose: Chooser) -> dict[int, list[int]]:
        """Read what is unread and write what is due; units by row number. Rows that are over leave the desk.

        Rows that are not to end here have the same to read and write, so that none waits while others go on.
        """
        units: dict[int, list[int]] = {pen.number: [] for pen in self.pens}
        while any(pen.left or pen.unread for pen in self.pens):
            states = self._read(self._due())
            written = choose(self.decoder.output_proj(states), [pen.number for pen in self.pens]).tolist()
            going = []
            for index, (pen, unit) in enumerate(zip(self.pens, written, strict=True)):
                if unit == self.decoder.end:
                    continue
                units[pen.number].append(unit)
                pen.last, pen.left = unit, pen.left - 1
                if pen.left or pen.unread or not pen.closes:  # else `max_units` are there
                    going.append(index)
            self.keep(going)
        return units

    def _due(self) -> list[Tensor]:
        """What each row reads next. Shape: `b times [n, D]`, n at least 1."""
        last = [0 if pen.last is None else pen.last for pen in self.pens]
        units = self.decoder.unit_embed(torch.tensor(last, device=self.places.device))
        due = []
        for unit, pen in zip(units, self.pens, strict=True):
            parts = [] if pen.last is None else [unit[None]]
            if not pen.left:
                text, pen.left = pen.unread.popleft()
                parts.append(text)
            due.append(torch.cat(parts) if len(parts) > 1 else parts[0])
        return due

    def _read(self, due: list[Tensor]) -> Tensor:
        """The state of each row's last position. Shape: `b times [n, D] -> [b, D]`."""
        sizes = [len(row) for row in due]
        embeds = pad_sequence(due, batch_first=True)
        lens = torch.tensor(sizes, device=self.places.device)
        steps = torch.arange(max(sizes), device=self.places.device)
        self.mask = torch.cat([self.mask, steps < lens[:, None]], dim=1)
        mask = None if bool(self.mask.all()) else self.mask.long()
        states = self.decoder.read(embeds, mask, self.places[:, None] + steps, self.cache)
        self.places = self.places + lens
        return states[torch.arange(len(due), device=lens.device), lens - 1]


class WritingStream(UnitStream):
    """Writes the units of a batch of answers as their tokens arrive; see `UnitStream` and `Schedule`.

    W units are written as soon as R tokens are there, and all that is left once a row ends. As a row's last tokens are
    followed by the separator and not by W units, its end has to be told together with its last token.

    Args:
        decoder: an `ARUnitDecoder`, whose `decode` is this stream given everything at once.
        rows: Q.
    """

    def __init__(self, decoder: ARUnitDecoder, rows: int) -> None:
        self.decoder, self.choose = decoder, Chooser(decoder.decoding, None)
        self.pens = [Pen(number) for number in range(rows)]
        self.desk = Desk(decoder, list(self.pens))
        self.waiting: list[list[Tensor]] = [[] for _ in range(rows)]  # [D] each: tokens that do not make R yet
        self.tokens = [0] * rows
        self.ended = torch.zeros(rows, dtype=torch.bool)

    @torch.no_grad()
    def push(
        self, states: Tensor, lens: Tensor | None = None, ids: Tensor | None = None, ended: Tensor | None = None
    ) -> list[Tensor]:
        """See `UnitStream.push`.

        Raises:
            ValueError: also if a row ends without a token after W units were written, which its last token alone could
                have prevented.
        """
        rows, width = states.shape[:2]
        if rows != len(self.pens):
            raise ValueError(f"states of {rows} rows, but this stream holds {len(self.pens)}")
        given = torch.full((rows,), width) if lens is None else lens.cpu()
        if bool((self.ended & (given > 0)).any()):
            raise ValueError("a row that ended got more states: `lens` below the width of a push ends a row")
        last = given < width if ended is None else (given < width) | ended.cpu()
        closing = (last & ~self.ended).tolist()
        self.ended |= last
        text = self.decoder.fused(states, present(ids, "ids")) if width else states.new_zeros(rows, 0, 1)
        for row, (size, closes) in enumerate(zip(given.tolist(), closing, strict=True)):
            self.waiting[row] += text[row, :size].unbind(0)
            self.tokens[row] += size
            if closes and not self.waiting[row] and self.tokens[row]:
                raise ValueError("a row ended after its last token was read: say so in `ended`, with that token")
            self._plan(row, closes)
        units = self._write({pen.number for pen, closes in zip(self.pens, closing, strict=True) if closes})
        return [torch.tensor(units.get(p.number, []), dtype=torch.long, device=states.device) for p in self.pens]

    def _plan(self, row: int, closes: bool) -> None:
        """Turn waiting tokens into blocks to read, each with the units to write after it."""
        waiting, pen, schedule = self.waiting[row], self.pens[row], self.decoder.schedule
        while len(waiting) > schedule.read or (len(waiting) == schedule.read and not closes):
            pen.unread.append((torch.stack(waiting[: schedule.read]), schedule.write))
            del waiting[: schedule.read]
        if closes and waiting:
            pen.unread.append((torch.cat([torch.stack(waiting), self.decoder.separator]), self.decoder.max_units))
            waiting.clear()
        pen.closes = closes

    def _write(self, closing: set[int]) -> dict[int, list[int]]:
        """Units by row number. Rows that end go to a desk of their own: they write while the others wait for text."""
        ends = [index for index, pen in enumerate(self.desk.pens) if pen.number in closing]
        units = {}
        if ends:
            own = self.desk if len(ends) == len(self.desk.pens) else self.desk.part(ends)
            own.keep([index for index, pen in enumerate(own.pens) if pen.unread])  # an empty answer has nothing to say
            stays = [index for index, pen in enumerate(self.desk.pens) if pen.number not in closing]
            units = own.write(self.choose)
            self.desk.keep(stays if own is not self.desk else [])
        return {**units, **self.desk.write(self.choose)}

    def keep(self, rows: Sequence[int]) -> None:
        """See `UnitStream.keep`."""
        self.pens = [self.pens[row] for row in rows]
        self.waiting, self.tokens = [self.waiting[row] for row in rows], [self.tokens[row] for row in rows]
        self.ended = self.ended[torch.tensor(list(rows), dtype=torch.long)]
        there = {pen.number for pen in self.pens}
        self.desk.keep([index for index, pen in enumerate(self.desk.pens) if pen.number in there])
