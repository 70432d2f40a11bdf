"""HiFi-GAN's generator as stages, which compute what the wanted samples need and no more.

A chunk of a stream is computed from frames around it that its samples depend on. Only the first layers need all of
them; the last ones, which are the dearest, would make sound of these frames that nobody wants.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
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
        between: list[Any] = [layer for stage in self.stages for layer in (stage.up, stage.convs)]
        return [self.pre, *between, self.post]

    def samples(self, x: Tensor, first: int, last: int) -> Tensor:
        """Samples `first ... last - 1` of the sound of all frames. Shape: `[B, in_dim, F] -> [B, last - first]`."""
        layers, wanted, offset = list(self.layers), (first, last - 1), 0

        def cut(x: Tensor, offset: int) -> tuple[Tensor, int]:
            """Without the positions that the layers left do not need."""
            start, stop = needs(layers, *wanted)
            start = max(start, offset)
            return x[..., start - offset : stop + 1 - offset], start

        x, offset = cut(x, offset)
        x = self.pre(x)
        layers.pop(0)
        for stage in self.stages:
            x, offset = cut(x, offset)
            x = stage.up(F.leaky_relu(x, self.slope))
            layers.pop(0)
            x, offset = cut(x, offset * int(stage.up.stride[0]))
            total: Tensor = sum(block(x) for block in stage.blocks)
            x = total / len(stage.blocks)
            layers.pop(0)
        x, offset = cut(x, offset)
        wave = torch.tanh(self.post(F.leaky_relu(x, LAST_SLOPE)))[:, 0]
        return wave[:, first - offset : last - offset]
