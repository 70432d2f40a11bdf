"""How far a convolutional network looks around each position, computed from its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

Branch = Sequence[Any]
"""Layers one after the other: convolutions, or lists of branches side by side whose results are added."""


@dataclass(frozen=True)
class Reach:
    """Input positions before and after its own that an output position depends on."""

    left: int
    right: int


class ShiftedConv1d(nn.Conv1d):
    """A convolution that keeps the length and sees `right` positions ahead, the rest of its kernel behind."""

    def __init__(self, channels: int, out_channels: int, kernel_size: int, right: int, groups: int = 1) -> None:
        if not 0 <= right < kernel_size:
            raise ValueError(f"a kernel of {kernel_size} can look 0 ... {kernel_size - 1} positions ahead, not {right}")
        super().__init__(channels, out_channels, kernel_size, groups=groups)
        self.left, self.right = kernel_size - 1 - right, right

    def forward(self, x: Tensor) -> Tensor:
        """Shape: `[B, C, T] -> [B, C, T]`."""
        return super().forward(F.pad(x, (self.left, self.right)))


def reach(layers: Branch) -> Reach:
    """Reach of a stack of layers, in positions of its input.

    With up-sampling layers an output position is all the samples of one input position. Elementwise layers and
    residual connections add nothing and are left out of the list.

    Args:
        layers: in the order of the data.

    Raises:
        ValueError: for a convolution with a stride, whose output has no position for each input.
    """
    rate = _rate(layers)
    first, last = needs(layers, 0, rate - 1)
    return Reach(max(0, -first), max(0, last))


def _rate(layers: Branch) -> int:
    rate = 1
    for layer in layers:
        if isinstance(layer, nn.ConvTranspose1d):
            rate *= layer.stride[0]
    return rate


def needs(layers: Branch, first: int, last: int) -> tuple[int, int]:
    """First and last input position that the output positions `first ... last` depend on; they may lie outside.

    Raises:
        ValueError: for a convolution with a stride.
    """
    for layer in reversed(layers):
        if isinstance(layer, nn.ConvTranspose1d):
            # out[t] gathers in[i] for every i with t = i * stride - padding + j, j in the kernel
            stride, padding = layer.stride[0], int(layer.padding[0])
            span = (layer.kernel_size[0] - 1) * layer.dilation[0]
            first, last = -((span - first - padding) // stride), (last + padding) // stride
        elif isinstance(layer, nn.Conv1d):
            if layer.stride[0] != 1:
                raise ValueError(f"{layer}: a vocoder's layers keep or raise the rate, this one lowers it")
            span = (layer.kernel_size[0] - 1) * layer.dilation[0]
            left = layer.left if isinstance(layer, ShiftedConv1d) else int(layer.padding[0])
            first, last = first - left, last - left + span
        else:
            ends = [needs(branch, first, last) for branch in layer]
            first, last = min(first, *(a for a, _ in ends)), max(last, *(b for _, b in ends))
    return first, last
