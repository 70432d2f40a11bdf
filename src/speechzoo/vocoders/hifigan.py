"""HiFi-GAN's small generator (resblock type 2), as VITS voices of "medium" quality carry it."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from speechzoo.vocoders.stages import Generator, Stage

SLOPE = 0.1


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

    def forward(self, x: Tensor, first: int = 0, last: int | None = None) -> Tensor:
        """Samples `first ... last - 1`, by default all, in [-1, 1]. Shape: `[B, in_dim, F] -> [B, last - first]`."""
        return self.stages.samples(x, first, x.shape[-1] * self.hop if last is None else last)

    @property
    def stages(self) -> Generator:
        """The layers in the order of the data."""
        blocks: list[Any] = list(self.resblocks)
        groups = [blocks[start : start + self.parallel] for start in range(0, len(blocks), self.parallel)]
        stages = [
            Stage(up, group, [list(block.convs) for block in group])  # type: ignore[arg-type]  # ModuleList's types
            for up, group in zip(self.ups, groups, strict=True)
        ]
        return Generator(self.conv_pre, stages, self.conv_post, SLOPE)
