"""Tiny vocoders with random weights, and what the tests ask of both kinds."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from speechzoo.vocoders import LatentNetConfig, LatentVocoder, UnitHiFiGAN, Vocoder

KINDS = ("unit_hifigan", "latent")
NUM_UNITS = 12
HIFIGAN = {
    "resblock": "1",
    "upsample_rates": [5, 2],
    "upsample_kernel_sizes": [11, 4],
    "upsample_initial_channel": 8,
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 2]],
    "num_embeddings": NUM_UNITS,
    "embedding_dim": 6,
    "model_in_dim": 6,
    "code_hop_size": 10,
    "dur_predictor_params": {"encoder_embed_dim": 6, "var_pred_hidden_dim": 8, "var_pred_kernel_size": 3},
}
GENERATOR = {
    "in_dim": 5,
    "channels": 8,
    "upsample_rates": [4, 2],
    "upsample_kernels": [8, 4],
    "block_kernels": [3, 5],
    "block_dilations": [[1, 2], [2, 3]],
}
NET = LatentNetConfig(
    num_units=NUM_UNITS, latent_dim=5, dim=8, unit_blocks=2, unit_kernel=4, unit_right=1, frame_blocks=2,
    frame_kernel=4, frame_right=1, expansion=2,
)  # fmt: skip


def loud(vocoder: Vocoder) -> Vocoder:
    """Weights so large that what a convolution sees is far above rounding errors, and durations of 1 ... 5 frames."""
    with torch.no_grad():
        for name, parameter in vocoder.named_parameters():
            if parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=1.5 / parameter[0].numel() ** 0.5)
            elif name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.1)
        head = vocoder.durations.proj if isinstance(vocoder, UnitHiFiGAN) else vocoder.net.log_duration[1]
        head.bias.fill_(1.0)
    return vocoder.eval()


def fairseq_folder(folder: Path) -> Path:
    """A unit HiFi-GAN as fairseq lays it out, weight norm included, with random weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(HIFIGAN))
    file = folder / "g_00000001"
    file.touch()
    with mock.patch.object(UnitHiFiGAN, "_load"):  # there is nothing to load yet
        made = UnitHiFiGAN(str(folder))
    state = {}
    for name, tensor in loud(made).state_dict().items():
        if name.startswith("embedding."):
            state["dict." + name[10:]] = tensor
        elif name.startswith("durations."):
            state["dur_predictor." + name[10:]] = tensor
        elif name not in ("generator.mean", "generator.scale"):
            name = name.removeprefix("generator.").replace("upsampler.", "ups.")
            if name.endswith("weight"):
                norm = tensor.flatten(1).norm(dim=1).view(-1, *[1] * (tensor.dim() - 1))
                state[name + "_g"], state[name + "_v"] = norm, 3.0 * tensor
            else:
                state[name] = tensor
    torch.save({"generator": state}, file)
    return folder


def vocoder(kind: str, folder: Path) -> Vocoder:
    """One of KINDS, the same weights each time."""
    torch.manual_seed(3)
    if kind == "unit_hifigan":
        return UnitHiFiGAN(str(fairseq_folder(folder)))
    return loud(LatentVocoder(NET, GENERATOR, sample_rate=800))


def random_units(number: int, seed: int = 0) -> Tensor:
    """Shape: `[number]`."""
    return torch.randint(0, NUM_UNITS, (number,), generator=torch.Generator().manual_seed(seed))
