"""LLaMA-Omni's vocoder: a unit HiFi-GAN with duration predictor, from fairseq's files."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import SpeechT5HifiGan, SpeechT5HifiGanConfig

from speechzoo.system.files import read_json
from speechzoo.vocoders.base import Vocoder
from speechzoo.vocoders.reach import reach
from speechzoo.vocoders.stages import Generator, Stage
from speechzoo.vocoders.window import Window


class DurationPredictor(nn.Module):
    """Frames each unit lasts, as log(frames + 1) (fairseq's VariancePredictor)."""

    def __init__(self, dim: int, hidden_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv1d(dim, hidden_dim, kernel_size, padding=(kernel_size - 1) // 2), nn.ReLU())
        self.ln1 = nn.LayerNorm(hidden_dim)
        self.conv2 = nn.Sequential(nn.Conv1d(hidden_dim, hidden_dim, kernel_size, padding=1), nn.ReLU())
        self.ln2 = nn.LayerNorm(hidden_dim)
        self.proj = nn.Linear(hidden_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Shape: `[B, U, dim] -> [B, U]`."""
        x = self.ln1(self.conv1(x.transpose(1, 2)).transpose(1, 2))
        x = self.ln2(self.conv2(x.transpose(1, 2)).transpose(1, 2))
        return self.proj(x).squeeze(-1)


class UnitHiFiGAN(Vocoder):
    """CodeHiFiGAN: unit embedding, predicted durations, HiFi-GAN generator (transformers' implementation of it).

    Args:
        folder: holds fairseq's `config.json` and one `g_*` checkpoint, such as the files of
            `mhubert_vp_en_es_fr_it3_400k_layer11_km1000_lj`.

    Raises:
        FileNotFoundError: if one of the files is missing.
        ValueError: if the checkpoint has other tensors than its config describes, or the config needs f0 or speakers.
    """

    def __init__(self, folder: str) -> None:
        super().__init__()
        root = Path(folder)
        files = sorted(root.glob("g_*"))
        if not files or not (root / "config.json").is_file():
            raise FileNotFoundError(f"{root}: a unit HiFi-GAN folder holds config.json and g_00500000")
        config = read_json(root / "config.json")
        unsupported = [key for key in ("f0", "multispkr", "num_speakers") if config.get(key)]
        if unsupported:
            raise ValueError(
                f"{root}/config.json: {', '.join(unsupported)} are not supported, only plain unit vocoders"
            )
        try:
            self.sample_rate, self.num_units = config.get("sampling_rate", 16_000), config["num_embeddings"]
            self.hop, parts = prod(config["upsample_rates"]), networks(config)
        except (KeyError, TypeError) as error:
            raise ValueError(f"{root}/config.json: describes no unit HiFi-GAN ({error})") from error
        if config["dur_predictor_params"]["var_pred_kernel_size"] != 3:  # fairseq pads the second convolution for 3
            raise ValueError(f"{root}/config.json: with a var_pred_kernel_size not 3 not all units have durations")
        self.embedding: nn.Embedding = parts["embedding"]
        self.durations: DurationPredictor = parts["durations"]
        self.generator: SpeechT5HifiGan = parts["generator"]
        self.unit_reach = reach([self.durations.conv1[0], self.durations.conv2[0]])
        self.frame_reach = reach(_stages(self.generator).layers)
        self._load(files[-1])
        self.eval()

    def _load(self, file: Path) -> None:
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)["generator"]
        except Exception as error:  # torch raises many kinds for a foreign or truncated file
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"{file}: damaged, or no checkpoint of a unit HiFi-GAN ({why})") from error
        renamed = {}
        for name, tensor in state.items():
            if name.endswith("weight_g"):
                continue
            if name.endswith("weight_v"):
                # weight norm, folded: w = g * v / |v|, the norm over all axes but the first
                norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
                name, tensor = name[:-2], state[name[:-1] + "g"] * tensor / norm
            if name.startswith("dict."):
                renamed["embedding." + name[5:]] = tensor
            elif name.startswith("dur_predictor."):
                renamed["durations." + name[14:]] = tensor
            else:
                renamed["generator." + name.replace("ups.", "upsampler.", 1)] = tensor
        try:
            missing, unexpected = self.load_state_dict(renamed, strict=False)
        except RuntimeError as error:  # other shapes
            why = " ".join(str(error).split())[:200]
            raise ValueError(f"{file}: does not fit config.json beside it ({why})") from error
        missing = [name for name in missing if name not in ("generator.mean", "generator.scale")]
        if missing or unexpected:
            raise ValueError(f"{file}: missing {missing[:3]}, left over {list(unexpected)[:3]}")

    @torch.no_grad()
    def predict_durations(self, units: Tensor) -> Tensor:
        """Frames of 1 / 50 s per unit, at least 1. Shape: `[U] -> [U]`."""
        logs = self.durations(self.embedding(units[None]))[0]
        return (logs.exp() - 1).round().long().clamp(min=1)

    def encode(self, units: Tensor) -> tuple[Tensor, Tensor]:
        """Embedding of each unit, and its frames. Shape: `[U] -> [U, C], [U]`."""
        return self.embedding(units), self.predict_durations(units)

    def render(self, states: Tensor, durations: Tensor, first: int, last: int) -> Tensor:
        """See `Vocoder.render`. Shape: `[U, C], [U] -> [(last - first) * hop]`."""
        frames = states.repeat_interleave(durations, dim=0)
        window = Window.of(self.frame_reach, first, last, len(frames))
        samples = window.first * self.hop, window.last * self.hop
        wave = _stages(self.generator).samples(window.cut(frames)[None].transpose(1, 2), *samples)[0]
        return window.wanted(wave, self.hop)

    @torch.no_grad()
    def forward(self, units: Any, durations: bool = True) -> Any:
        """As for `Vocoder`; `durations=False` gives each unit one frame (units with their repeats kept)."""
        if durations or not isinstance(units, Tensor):
            return super().forward(units) if durations else [self(row, durations=False) for row in units]
        units = self.check(units)
        states, one = self.embedding(units), torch.ones_like(units)
        return self.render(states, one, 0, len(units)) if len(units) else states.new_zeros(0)


def networks(config: dict[str, Any]) -> dict[str, Any]:
    """The untrained parts that fairseq's `config.json` describes: `embedding`, `durations`, `generator`."""
    predictor = config["dur_predictor_params"]
    return {
        "embedding": nn.Embedding(config["num_embeddings"], config["embedding_dim"]),
        "durations": DurationPredictor(
            predictor["encoder_embed_dim"], predictor["var_pred_hidden_dim"], predictor["var_pred_kernel_size"]
        ),
        "generator": SpeechT5HifiGan(
            SpeechT5HifiGanConfig(
                model_in_dim=config["model_in_dim"],
                sampling_rate=config.get("sampling_rate", 16_000),
                upsample_initial_channel=config["upsample_initial_channel"],
                upsample_rates=config["upsample_rates"],
                upsample_kernel_sizes=config["upsample_kernel_sizes"],
                resblock_kernel_sizes=config["resblock_kernel_sizes"],
                resblock_dilation_sizes=config["resblock_dilation_sizes"],
                leaky_relu_slope=0.1,
                normalize_before=False,
            )
        ),
    }


def _stages(generator: SpeechT5HifiGan) -> Generator:
    """The generator's layers in the order of the data."""
    blocks: list[Any] = list(generator.resblocks)
    each = len(blocks) // len(generator.upsampler)
    stages = []
    ups: list[Any] = list(generator.upsampler)
    for number, up in enumerate(ups):
        group = blocks[number * each : (number + 1) * each]
        convs = [[c for pair in zip(block.convs1, block.convs2, strict=True) for c in pair] for block in group]
        stages.append(Stage(up, group, convs))
    return Generator(generator.conv_pre, stages, generator.conv_post, generator.config.leaky_relu_slope)
