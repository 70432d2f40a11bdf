"""What every unit decoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from speechzoo.generation.units import UnitStream


@dataclass
class UnitOutput:
    """Unit logits and, where targets were given, their loss."""

    logits: Tensor  # [Q, R, K + 1]
    lens: Tensor  # [Q] positions of each row
    loss_sum: Tensor | None = None  # scalar, summed over target units
    infeasible: Tensor | None = None  # [Q] bool: targets that no alignment can produce; they are not in the sum


class UnitDecoder(nn.Module, ABC):
    """Turns LLM states of an answer into discrete speech units.

    The first argument of a subclass's constructor is the LLM's width H; the model fills it in.

    Attributes:
        num_units: K, units are 0 ... K - 1.
        align: which states stand for an answer y_1 ... y_M: `predict`, the states that predict it (from the last
            prompt position, as at inference and in the paper), or `label`, the states that have read it (the
            released training code, one position late).
    """

    num_units: int
    align: str

    @property
    def reads_last(self) -> bool:
        """Whether answers are spoken from the states that have read a token, not from those that predict it."""
        return getattr(self, "answer_align", self.align) == "label"

    @abstractmethod
    def forward(
        self, states: Tensor, lens: Tensor, units: Tensor | None = None, unit_lens: Tensor | None = None
    ) -> UnitOutput:
        """Shape: states `[Q, M, H]`, lens `[Q]`, units `[Q, U]`, unit_lens `[Q]`; in training all but the states are on
        the host."""

    @abstractmethod
    def decode(self, states: Tensor, lens: Tensor) -> list[Tensor]:
        """Units of each row, greedy. Shape: `[Q, M, H], [Q] -> Q times [U]`."""

    @abstractmethod
    def stream(self, rows: int) -> UnitStream:
        """A stream for so many answers, from their beginning."""
