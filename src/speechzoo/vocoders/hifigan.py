"""HiFi-GAN's small generator (resblock type 2), as VITS voices of "medium" quality carry it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from speechzoo.vocoders.reach import Branch

SLOPE = 0.1
LAST_SLOPE = 0.01


class ResidualBlock(nn.Module):
    """Dilated convolutions, each with its own skip connection (HiFi-GAN, appendix A.1, resblock 2)."""

    def __init__(self, channels: int, kernel_size: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv1d(channels, channels, kernel_size, dilation=d, padding=(kernel_size - 1) * d // 2)
            for d in dilations
        )

    def forward(self, x: Tensor) -> Tensor:
        """Shape: `[B, C, T] -> [B, C, T]`."""
        for conv in self.convs:
            x = x + conv(F.leaky_relu(x, SLOPE))
        return x


class HiFiGANGenerator(nn.Module):
    """Latent frames to samples.

    Args:
        in_dim: channels of a frame.
        channels: after the first convolution; halved by every up-sampling.
        upsample_rates: their product is the samples per frame.
        upsample_kernels: kernel of each up-sampling.
        block_kernels: kernels of the residual blocks side by side after each up-sampling.
        block_dilations: dilations within each of these blocks.
    """

    def __init__(
        self,
        in_dim: int = 192,
        channels: int = 256,
        upsample_rates: Sequence[int] = (8, 8, 4),
        upsample_kernels: Sequence[int] = (16, 16, 8),
        block_kernels: Sequence[int] = (3, 5, 7),
        block_dilations: Sequence[Sequence[int]] = ((1, 2), (2, 6), (3, 12)),
    ) -> None:
        super().__init__()
        self.arguments = {
            "in_dim": in_dim,
            "channels": channels,
            "upsample_rates": list(upsample_rates),
            "upsample_kernels": list(upsample_kernels),
            "block_kernels": list(block_kernels),
            "block_dilations": [list(dilations) for dilations in block_dilations],
        }
        self.in_dim, self.hop = in_dim, prod(upsample_rates)
        self.conv_pre = nn.Conv1d(in_dim, channels, 7, padding=3)
        self.ups, self.resblocks = nn.ModuleList(), nn.ModuleList()
        for rate, kernel in zip(upsample_rates, upsample_kernels, strict=True):
            self.ups.append(nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2))
            channels //= 2
            for block, dilations in zip(block_kernels, block_dilations, strict=True):
                self.resblocks.append(ResidualBlock(channels, block, dilations))
        self.conv_post = nn.Conv1d(channels, 1, 7, padding=3, bias=False)
        self.parallel = len(block_kernels)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: `[B, in_dim, F] -> [B, F * hop]`, in [-1, 1]."""
        x = self.conv_pre(x)
        for stage, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, SLOPE))
            x = sum(block(x) for block in self._blocks(stage)) / self.parallel
        return torch.tanh(self.conv_post(F.leaky_relu(x, LAST_SLOPE)))[:, 0]

    def _blocks(self, stage: int) -> list[Any]:
        return list(self.resblocks[stage * self.parallel : (stage + 1) * self.parallel])

    @property
    def layers(self) -> Branch:
        """The convolutions in the order of the data, for `speechzoo.vocoders.reach`."""
        stages = [(up, [list(block.convs) for block in self._blocks(i)]) for i, up in enumerate(self.ups)]
        return [self.conv_pre, *chain.from_iterable(stages), self.conv_post]
