"""What every adaptor offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Adaptor(nn.Module, ABC):
    """Brings encoder states to the width of the LLM, with fewer frames where it likes.

    The first two arguments of a subclass's constructor are the widths D and H; the model fills them in.
    """

    @abstractmethod
    def forward(self, states: Tensor, lens: Tensor) -> tuple[Tensor, Tensor]:
        """LLM positions for encoder states.

        Shape: `[N, F, D], [N] -> [N, A, H], [N]`.
        """

    @abstractmethod
    def out_lens(self, lens: Tensor) -> Tensor:
        """Positions for so many encoder frames: the only place that knows. `[N] -> [N]`."""
