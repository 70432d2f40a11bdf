"""The quickstart's vocoder: a small net from units to a voice's latents, then that voice's own generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from speechzoo.names.resolvers import register_resolvers
from speechzoo.names.spec import to_factory
from speechzoo.names.trust import check_parts
from speechzoo.system.digests import DamagedError, read_tensors, sealed_tensors
from speechzoo.system.files import read_json, write_atomically, write_json
from speechzoo.vocoders.base import Vocoder
from speechzoo.vocoders.hifigan import HiFiGANGenerator
from speechzoo.vocoders.reach import Reach, ShiftedConv1d, reach
from speechzoo.vocoders.window import Window

CONFIG, WEIGHTS = "config.json", "model.safetensors"
VOICE = "voice"
"""Key of a published vocoder's configuration: the part that holds its generator, `{class_path, init_args}`."""
LONGEST = 32  # frames; later frames of a unit share a position


@dataclass(frozen=True)
class LatentNetConfig:
    """Sizes of `LatentNet`. A kernel of 7 with 2 to the right sees 4 positions back and 2 ahead."""

    num_units: int = 200
    latent_dim: int = 192
    dim: int = 256
    unit_blocks: int = 2
    unit_kernel: int = 5
    unit_right: int = 1
    frame_blocks: int = 3
    frame_kernel: int = 7
    frame_right: int = 2
    expansion: int = 3
    dropout: float = 0.1


class Block(nn.Module):
    """ConvNeXt block in one dimension: depthwise convolution, norm, two pointwise layers, skip connection."""

    def __init__(self, dim: int, kernel_size: int, right: int, expansion: int, dropout: float) -> None:
        super().__init__()
        self.conv = ShiftedConv1d(dim, dim, kernel_size, right, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(
            nn.Linear(dim, expansion * dim), nn.GELU(), nn.Dropout(dropout), nn.Linear(expansion * dim, dim)
        )

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Shape: `[B, T, C], [B, T] -> [B, T, C]`; positions outside the mask read as zero."""
        y = self.conv((x * mask[..., None]).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp(self.norm(y))


class LatentNet(nn.Module):
    """Units to frames a unit lasts, and to the latents of these frames."""

    def __init__(self, config: LatentNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, last = config.dim, (config.expansion, config.dropout)
        self.embedding = nn.Embedding(config.num_units, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.unit_blocks = nn.ModuleList(
            Block(dim, config.unit_kernel, config.unit_right, *last) for _ in range(config.unit_blocks)
        )
        self.log_duration = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 1))
        self.from_start = nn.Embedding(LONGEST, dim)
        self.to_end = nn.Embedding(LONGEST, dim)
        self.frame_blocks = nn.ModuleList(
            Block(dim, config.frame_kernel, config.frame_right, *last) for _ in range(config.frame_blocks)
        )
        self.latent = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, config.latent_dim))

    def encode(self, units: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """States of units and log-durations in frames. Shape: `[B, U], [B, U] -> [B, U, C], [B, U]`."""
        x = self.dropout(self.embedding(units))
        for block in self.unit_blocks:
            x = block(x, mask)
        return x, self.log_duration(x)[..., 0]

    def expand(self, states: Tensor, durations: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Each state once for each of its frames, told its place in the unit. Shape: `[U, C], [U] -> [F, C]`."""
        ends = durations.cumsum(0)
        frames = torch.arange(start, int(ends[-1]) if stop is None else stop, device=states.device)
        unit = torch.searchsorted(ends, frames, right=True)
        after = (frames - (ends - durations)[unit]).clamp(max=LONGEST - 1)
        before = (ends[unit] - 1 - frames).clamp(max=LONGEST - 1)
        return states[unit] + self.from_start(after) + self.to_end(before)

    def latents(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Shape: `[B, F, C], [B, F] -> [B, F, latent_dim]`."""
        for block in self.frame_blocks:
            frames = block(frames, mask)
        return self.latent(frames)


def is_latent(folder: Path) -> bool:
    """Whether a folder holds a `LatentVocoder`."""
    return (folder / CONFIG).is_file() and read_json(folder / CONFIG).get("class") == "LatentVocoder"


class LatentVocoder(Vocoder):
    """Deduplicated units -> durations and latents -> a pretrained generator, which is never trained.

    Args:
        net: `LatentNetConfig` or its fields.
        generator: arguments of `HiFiGANGenerator`.
        sample_rate: of the generator's sound, Hz.

    Attributes:
        mean, scale: of the latents per channel; the net makes normalised ones. Shape: `[latent_dim]`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, net: LatentNetConfig | dict[str, Any], generator: dict[str, Any], sample_rate: int) -> None:
        super().__init__()
        config = net if isinstance(net, LatentNetConfig) else LatentNetConfig(**net)
        self.net = LatentNet(config)
        self.generator = HiFiGANGenerator(**generator).requires_grad_(False)
        if self.generator.in_dim != config.latent_dim:
            raise ValueError(f"the net makes {config.latent_dim} channels, the generator takes {self.generator.in_dim}")
        self.arguments = {"net": asdict(config), "generator": self.generator.arguments, "sample_rate": sample_rate}
        self.register_buffer("mean", torch.zeros(config.latent_dim))
        self.register_buffer("scale", torch.ones(config.latent_dim))
        self.sample_rate, self.num_units, self.hop = sample_rate, config.num_units, self.generator.hop
        self.unit_reach = reach([block.conv for block in self.net.unit_blocks])
        inner, outer = reach([block.conv for block in self.net.frame_blocks]), reach(self.generator.stages.layers)
        self.frame_reach = Reach(inner.left + outer.left, inner.right + outer.right)
        self.eval()

    def encode(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """State of each unit, and its frames, at least 1. Shape: `[U] -> [U, C], [U]`."""
        states, logs = self.net.encode(units[None], torch.ones_like(units[None]))
        return states[0], logs[0].exp().round().long().clamp(min=1)

    def render(self, states: Tensor, durations: Tensor, first: int, last: int) -> Tensor:
        """See `Vocoder.render`. Shape: `[U, C], [U] -> [(last - first) * hop]`."""
        window = Window.of(self.frame_reach, first, last, int(durations.sum()))
        frames = self.net.expand(states, durations, window.start, window.stop)
        mask = window.pad(torch.ones_like(frames[:, :1]))[:, 0]
        latents = self.net.latents(window.pad(frames)[None], mask[None]) * self.scale + self.mean
        wave = self.generator(latents.transpose(1, 2), window.first * self.hop, window.last * self.hop)[0]
        return window.wanted(wave, self.hop)

    def save(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, generator included; each appears whole or not at all."""
        folder = Path(folder)
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        write_atomically(folder / WEIGHTS, sealed_tensors(tensors))
        write_json(folder / CONFIG, {"class": "LatentVocoder", **self.arguments})

    @classmethod
    def from_folder(cls, folder: str | Path) -> LatentVocoder:
        """A vocoder that `save` wrote, in eval mode; a published one takes its generator from the voice it names.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if they belong to something else, or the weights are damaged.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name}: no such file; the folder of a LatentVocoder holds it")
        config = read_json(folder / CONFIG)
        if config.pop("class", None) != "LatentVocoder":
            raise ValueError(f"{folder / CONFIG}: describes no LatentVocoder")
        voice = config.pop(VOICE, None)
        try:
            vocoder = cls(**config)
        except TypeError as error:
            raise ValueError(f"{folder / CONFIG}: describes no LatentVocoder ({error})") from error
        try:
            state = read_tensors(folder / WEIGHTS)
            if voice is not None:
                state |= {f"generator.{name}": tensor for name, tensor in _generator(voice, folder).items()}
            vocoder.load_state_dict(state)
        except (RuntimeError, DamagedError) as error:
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"{folder / WEIGHTS}: does not fit {CONFIG} beside it ({why})") from error
        return vocoder


def _generator(spec: dict[str, Any], folder: Path) -> dict[str, Tensor]:
    """Weights of the generator that a published vocoder names; the part is fetched if it is not there."""
    register_resolvers()
    named: Any = OmegaConf.to_container(OmegaConf.create(spec), resolve=True)
    check_parts({"generator": named}, folder / CONFIG)
    generator: HiFiGANGenerator = to_factory(named)()
    return generator.state_dict()
