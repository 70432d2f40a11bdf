"""Read R tokens, write W units: in which order an answer's text and units follow each other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from speechzoo.names.spec import at_least


@dataclass(frozen=True)
class Schedule:
    """The order of tokens and units in one sequence (LLaMA-Omni 2, section 2.2; the released generation.py).

    ```
    R tokens, W units, R tokens, W units, ..., the last 1 ... R tokens, separator, all other units, end
    ```
    The last tokens are followed by the separator at once, also where they are R. Where the units run out before the
    text does, the end stands where the next unit would, and what follows it is never read.

    Args:
        read: R, 3 in the paper.
        write: W, 10 in the paper.
    """

    read: int = 3
    write: int = 10

    def __post_init__(self) -> None:
        at_least(1, "Schedule", read=self.read, write=self.write)

    def streamed(self, lens: Tensor) -> Tensor:
        """Units written before the separator, if there are as many. Shape: `[Q] -> [Q]`."""
        return (lens - 1).clamp(min=0) // self.read * self.write

    def places(self, lens: Tensor, units: int) -> Tensor:
        """Where the units 0 ... `units` - 1 stand in each row's sequence. Shape: `[Q] -> [Q, units]`."""
        numbers = torch.arange(units, device=lens.device)
        early = (numbers // self.write + 1) * self.read + numbers
        return torch.where(numbers < self.streamed(lens)[:, None], early, lens[:, None] + 1 + numbers)

    def sources(self, lens: Tensor, size: int, tokens: int) -> Tensor:
        """What stands at each of the first `size` places of each row, as an index into `tokens` tokens, the separator,
        and the units, one after the other. Shape: `[Q] -> [Q, size]`.
        """
        place, lens = torch.arange(size, device=lens.device), lens[:, None]
        streamed = self.streamed(lens)
        turn, inside = place // (self.read + self.write), place % (self.read + self.write)
        written = tokens + 1 + turn * self.write + inside - self.read
        early = torch.where(inside < self.read, turn * self.read + inside, written)
        token = place - streamed  # past the streamed blocks; at `lens` it is the separator
        late = torch.where(token < lens, token, torch.where(token == lens, tokens, tokens + place - lens))
        return torch.where(place < streamed // self.write * (self.read + self.write), early, late)
