"""HiFi-GAN's generator as stages, which compute what the wanted samples need and no more.

A chunk of a stream is computed from frames around it that its samples depend on. Only the first layers need all of
them; the last ones, which are the dearest, would make sound of these frames that nobody wants.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechzoo.vocoders.reach import Branch, needs

LAST_SLOPE = 0.01


@dataclass(frozen=True)
class Stage:
    """One up-sampling and the residual blocks side by side after it, whose results are averaged."""

    up: nn.ConvTranspose1d
    blocks: Sequence[nn.Module]
    convs: Sequence[Sequence[nn.Conv1d]]  # of each block, in their order

    def average(self, x: Tensor) -> Tensor:
        """What the blocks make of positions. Shape: `[B, C, T] -> [B, C, T]`."""
        total: Tensor = sum(block(x) for block in self.blocks)
        return total / len(self.blocks)


@dataclass(frozen=True)
class Generator:
    """HiFi-GAN's layers, of whichever implementation.

    Attributes:
        slope: of the leaky ReLU before each up-sampling.
    """

    pre: nn.Conv1d
    stages: Sequence[Stage]
    post: nn.Conv1d
    slope: float

    @property
    def layers(self) -> Branch:
        """The convolutions in the order of the data, for `speechzoo.vocoders.reach`."""
        return [layer for layer, _ in self._steps()]

    def samples(self, x: Tensor, first: int, last: int) -> Tensor:
        """Samples `first ... last - 1` of the sound of all frames. Shape: `[B, in_dim, F] -> [B, last - first]`."""
        steps, offset = self._steps(), 0  # the place of x's first position among those of all frames
        for done, (layer, work) in enumerate(steps):
            start, stop = needs([left for left, _ in steps[done:]], first, last - 1)
            start = max(start, offset)
            x, offset = work(x[..., start - offset : stop + 1 - offset]), start
            if isinstance(layer, nn.ConvTranspose1d):
                offset *= layer.stride[0]
        return x[:, 0, first - offset : last - offset]

    def _steps(self) -> list[tuple[Any, Callable[[Tensor], Tensor]]]:
        """Convolutions, one or several side by side, each with what it does to positions, activations included."""
        steps: list[tuple[Any, Callable[[Tensor], Tensor]]] = [(self.pre, self.pre)]
        for stage in self.stages:
            steps += [(stage.up, partial(self._up, stage.up)), (stage.convs, stage.average)]
        return [*steps, (self.post, lambda x: torch.tanh(self.post(F.leaky_relu(x, LAST_SLOPE))))]

    def _up(self, up: nn.ConvTranspose1d, x: Tensor) -> Tensor:
        upsampled: Tensor = up(F.leaky_relu(x, self.slope))
        return upsampled
