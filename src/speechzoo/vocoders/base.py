"""What every vocoder offers: sound of whole unit sequences, and the same sound in pieces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import overload

import torch
from torch import Tensor, nn

from speechzoo.generation.sound import VocoderStream
from speechzoo.vocoders.reach import Reach


class Vocoder(nn.Module, ABC):
    """Turns discrete units into sound: units -> states and durations -> frames -> samples.

    Both halves have a bounded view, so that sound can be made piece by piece and still be the sound of the whole.

    Attributes:
        sample_rate: of the sound, Hz.
        num_units: K, units are 0 ... K - 1.
        hop: samples per frame.
        unit_reach: units around its own that a unit's state and duration depend on.
        frame_reach: frames around its own that a frame's samples depend on.
    """

    sample_rate: int
    num_units: int
    hop: int
    unit_reach: Reach
    frame_reach: Reach

    @abstractmethod
    def encode(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """State of each unit, and the frames it lasts, at least 1. Shape: `[U] -> [U, C], [U]`."""

    @abstractmethod
    def render(self, states: Tensor, durations: Tensor, first: int, last: int) -> Tensor:
        """Samples of the units' frames `first ... last - 1`, with the frames around them that they depend on.

        Shape: `[U, C], [U] -> [(last - first) * hop]`.
        """

    @overload
    def forward(self, units: Tensor) -> Tensor: ...
    @overload
    def forward(self, units: list[Tensor]) -> list[Tensor]: ...
    @torch.no_grad()
    def forward(self, units: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
        """Sound of one unit sequence or of several, each as if it were alone; no units make no samples.

        Shape: `[U] -> [T]`, or `B times [U] -> B times [T]`; float32 in [-1, 1].

        Raises:
            ValueError: if a unit is not in 0 ... K - 1.
        """
        if not isinstance(units, Tensor):
            return [self(row) for row in units]
        units = self.check(units)
        if not len(units):
            return torch.zeros(0, device=units.device)
        states, durations = self.encode(units)
        return self.render(states, durations, 0, int(durations.sum()))

    def stream(self, chunk_units: int, context_units: int | None = None) -> VocoderStream:
        """A stream of one answer: `push` units as they come, get samples; `flush` at the end.

        Args:
            chunk_units: Omega of LLaMA-Omni's Algorithm 1: sound is made as soon as that many units can be spoken.
            context_units: None computes each chunk with all the context it has in the whole, so that the pieces
                together equal the whole; it waits for the units after the chunk that this needs. A number waits for at
                most so many units: sound comes earlier, and differs a little near the seams. 0 makes each chunk by
                itself, without what came before either, as the released demo does; seams click.

        Raises:
            ValueError: if one of the numbers makes no sense.
        """
        return VocoderStream(self, chunk_units, context_units)

    def check(self, units: Tensor) -> Tensor:
        """The units as int64 on this vocoder's device.

        Raises:
            ValueError: if there is more than one axis, or a unit that is not in 0 ... K - 1.
        """
        if units.dim() != 1:
            raise ValueError(f"units of one answer are [U], not {tuple(units.shape)}; give a list for several answers")
        if len(units) and (int(units.min()) < 0 or int(units.max()) >= self.num_units):
            raise ValueError(
                f"units {int(units.min())} ... {int(units.max())}: this vocoder knows 0 ... {self.num_units - 1}; "
                "it belongs to another set of units than the model that speaks"
            )
        return units.to(next(self.parameters()).device, torch.long)
