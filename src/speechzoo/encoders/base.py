"""What every speech encoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Encoder(nn.Module, ABC):
    """Turns sound into a sequence of states.

    Attributes:
        out_dim: width D of a state.
    """

    out_dim: int

    @abstractmethod
    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        """States and their lengths; rows do not influence each other, states past a row's length are 0.

        Shape: `[N, T], [N] (samples, 16 kHz) -> [N, F, D], [N] (frames)`.
        """

    @abstractmethod
    def out_lens(self, audio_lens: Tensor) -> Tensor:
        """Frames for clips of so many samples: the only place that knows. `[N] -> [N]`."""

    def computed_lens(self, audio_lens: Tensor) -> Tensor:
        """Samples that `forward` computes for clips of so many: more where each is padded to a window. `[N] -> [N]`."""
        return audio_lens

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of weights and settings: equal fingerprints give equal features, so they may be cached under it."""
