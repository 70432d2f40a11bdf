"""What every vocoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Vocoder(nn.Module, ABC):
    """Turns discrete units into sound.

    Attributes:
        sample_rate: of the sound, Hz.
        num_units: K, units are 0 ... K - 1.
    """

    sample_rate: int
    num_units: int

    @abstractmethod
    def forward(self, units: list[Tensor]) -> list[Tensor]:
        """Sound of each unit sequence. Shape: `B times [U] -> B times [T]`, float in [-1, 1]."""
