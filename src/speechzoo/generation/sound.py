"""Sound while the units are still coming: chunks that together are the sound of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from speechzoo.vocoders.base import Vocoder


class VocoderStream:
    """State of one answer that is being spoken; made by `Vocoder.stream`, which explains the arguments.

    Only units that later chunks still depend on are kept, so memory and work per chunk do not grow with the answer.
    Chunks equal the whole up to rounding of float arithmetic (about 1e-6), as long as no predicted duration lies so
    near to a half frame that this rounding decides it.
    """

    def __init__(self, vocoder: Vocoder, chunk_units: int, context_units: int | None = None) -> None:
        if chunk_units < 1:
            raise ValueError(f"chunk_units is at least 1, not {chunk_units}")
        if context_units is not None and context_units < 0:
            raise ValueError(f"context_units is None (all that is needed) or at least 0, not {context_units}")
        self.vocoder, self.chunk_units, self.context_units = vocoder, chunk_units, context_units
        self._reset()

    def _reset(self) -> None:
        device = next(self.vocoder.parameters()).device
        self._units = torch.zeros(0, dtype=torch.long, device=device)  # those kept, spoken ones first
        self._durations = self._units  # of the spoken ones among them: fixed once their sound is out

    @torch.no_grad()
    def push(self, units: Tensor) -> Tensor:
        """Take new units; returns the samples that are ready now, often none. Shape: `[U] -> [T]`.

        Raises:
            ValueError: if a unit is not in 0 ... K - 1; the stream is then as before.
        """
        self._units = torch.cat([self._units, self.vocoder.check(units)])
        return self._speak(last=False)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """The rest of the answer. Shape: `[T]`. Afterwards the stream is ready for another answer."""
        wave = self._speak(last=True)
        self._reset()
        return wave

    def _speak(self, last: bool) -> Tensor:
        done, total = len(self._durations), len(self._units)
        nothing = torch.zeros(0, device=self._units.device)
        wait = self.vocoder.unit_reach.right if self.context_units is None else self.context_units
        if total == done or (not last and total - done < self.chunk_units + min(wait, self.vocoder.unit_reach.right)):
            return nothing
        if self.context_units == 0:
            wave: Tensor = self.vocoder(self._units)
            self._units = self._units[:0]
            return wave
        states, durations = self.vocoder.encode(self._units)
        durations = torch.cat([self._durations, durations[done:]])
        ends = durations.cumsum(0)
        stop = total if last else self._ready(ends)
        if stop <= done or (not last and stop - done < self.chunk_units):
            return nothing
        first_frame, last_frame = int(ends[done - 1]) if done else 0, int(ends[stop - 1])
        wave = self.vocoder.render(states, durations, first_frame, last_frame)
        # The next chunk starts at last_frame and sees reach.left frames before it.
        seen = last_frame - self.vocoder.frame_reach.left
        self._forget(durations[:stop], int((ends <= seen).sum()) - self.vocoder.unit_reach.left)
        return wave

    def _ready(self, ends: Tensor) -> int:
        """How many of the kept units can be spoken, given the frame where each ends. Shape: `[U]`."""
        total = len(ends)
        known = total - self.vocoder.unit_reach.right  # their states and durations will not change any more
        ready = 0 if known < 1 else int((ends <= ends[known - 1] - self.vocoder.frame_reach.right).sum())
        return ready if self.context_units is None else max(ready, total - self.context_units)

    def _forget(self, spoken: Tensor, number: int) -> None:
        """Keep the durations of spoken units, without the first units, which nothing depends on any more."""
        number = max(0, number)
        self._units, self._durations = self._units[number:], spoken[number:]
