"""What every unit decoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from inspect import signature
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from speechzoo.generation.units import UnitStream


@dataclass
class UnitOutput:
    """Unit logits and, where targets were given, their loss."""

    logits: Tensor  # [Q, R, K + 1], the last one a symbol of the decoder's own: CTC's blank, the end of the units
    lens: Tensor  # [Q] positions of each row
    loss_sum: Tensor | None = None  # scalar, summed over targets
    infeasible: Tensor | None = None  # [Q] bool: targets that the decoder cannot produce; they are not in the sum


class UnitDecoder(nn.Module, ABC):
    """Turns LLM states of an answer into discrete speech units.

    The first argument of a subclass's constructor is the LLM's width H; the model fills it in. A decoder that reads the
    answer's tokens too says so by `reads_ids`; the model then gives its constructor `vocab_size`, the number V of text
    tokens, and its `forward` and `decode` the `ids`, all by keyword. Its stream is told which rows end, see
    `UnitStream.push`. Every other decoder is given none of this.

    Attributes:
        num_units: K, units are 0 ... K - 1.
        align: which states stand for an answer y_1 ... y_M: `predict`, the states that predict it (from the last
            prompt position, as at inference and in the paper), or `label`, the states that have read it (the
            released training code, one position late).
        objective: name of its loss among the model's `objectives`, which say how its targets are counted.
        reads_ids: whether the decoder reads the answer's tokens beside their states; needs `align: predict`.
    """

    num_units: int
    align: str
    objective: ClassVar[str] = "ctc"
    reads_ids: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        for name in ("forward", "decode") if cls.reads_ids else ():
            if "ids" not in signature(getattr(cls, name)).parameters:
                raise TypeError(f"{cls.__name__} reads_ids, so its {name} has to take `ids` [Q, M]")

    @property
    def reads_last(self) -> bool:
        """Whether answers are spoken from the states that have read a token, not from those that predict it."""
        return getattr(self, "answer_align", self.align) == "label"

    def unspoken(self, lens: Tensor, units: Tensor, unit_lens: Tensor) -> Tensor:
        """Which answers of the data could not be spoken as they are. Shape: `[Q], [Q, U], [Q] -> [Q]`, bool."""
        return torch.zeros_like(lens, dtype=torch.bool)

    @property
    def unspoken_reason(self) -> tuple[str, str]:
        """What such answers are like, and what to do about them, for `speechzoo doctor`."""
        return "do not fit the unit decoder", "change its settings"

    @abstractmethod
    def forward(
        self, states: Tensor, lens: Tensor, units: Tensor | None = None, unit_lens: Tensor | None = None
    ) -> UnitOutput:
        """Shape: states `[Q, M, H]`, lens `[Q]`, units `[Q, U]`, unit_lens `[Q]`; with `reads_ids` also ids `[Q, M]`.

        In training all but states and ids are on the host."""

    @abstractmethod
    def decode(self, states: Tensor, lens: Tensor) -> list[Tensor]:
        """Units of each row. Shape: `[Q, M, H], [Q] -> Q times [U]`; with `reads_ids` also ids `[Q, M]`."""

    @abstractmethod
    def stream(self, rows: int) -> UnitStream:
        """A stream for so many answers, from their beginning."""


def check_heads(owner: str, dim: int, num_heads: int, num_kv_heads: int | None) -> None:
    """Refuse a width that does not divide among attention heads, whose own width has to be even to be rotated.

    Raises:
        ValueError: naming the part.
    """
    if dim % (2 * num_heads) or num_heads % (num_kv_heads or num_heads):
        raise ValueError(
            f"{owner}: dim {dim} has to be a multiple of num_heads {num_heads}, an even one, and that of num_kv_heads"
        )
