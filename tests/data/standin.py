"""The smallest LightningModule that offers what `SpeechDataModule` asks of a model, and keeps what it is given."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from tiny_runs import num_targets
from torch import Tensor, nn

from speechzoo.audio import FRAME
from speechzoo.encoders.base import Encoder
from speechzoo.text import ChatPrompt
from speechzoo.types import SpeechBatch


class Frames(Encoder):
    """A real encoder of the simplest kind: an affine map of each 20 ms of sound."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.out_dim = 8
        self.linear = nn.Linear(FRAME, 8)
        nn.init.constant_(self.linear.bias, scale)
        self.calls: list[int] = []

    def forward(self, audio: Tensor, audio_lens: Tensor) -> tuple[Tensor, Tensor]:
        self.calls.append(len(audio))
        frames = audio[:, : audio.shape[1] // FRAME * FRAME].unflatten(1, (-1, FRAME))
        inside = torch.arange(frames.shape[1]) < self.out_lens(audio_lens)[:, None]
        return self.linear(frames) * inside[..., None], self.out_lens(audio_lens)

    def out_lens(self, audio_lens: Tensor) -> Tensor:
        return audio_lens // FRAME

    @property
    def fingerprint(self) -> str:
        return str([parameter.sum().item() for parameter in self.parameters()])


class Listener(LightningModule):
    """Learns a number from the ids; `batches` holds all it was given, `seen` their record names."""

    def __init__(self, tokenizer: str, num_units: int | None = 10, frozen: bool = True) -> None:
        super().__init__()
        self.prompt = ChatPrompt(tokenizer)
        self.num_units, self.encoder_is_frozen = num_units, frozen
        torch.manual_seed(0)
        self.encoder = Frames().requires_grad_(not frozen)
        self.weight = nn.Parameter(torch.zeros(4))
        self.batches: list[SpeechBatch] = []

    def audio_positions(self, samples: Tensor) -> Tensor:
        return self.encoder.out_lens(samples) // 5

    def num_targets(self, batch: SpeechBatch) -> dict[str, int]:
        return num_targets(batch)

    @property
    def seen(self) -> list[list[str]]:
        return [batch.ids for batch in self.batches]

    def training_step(self, batch: SpeechBatch, batch_idx: int) -> Tensor:
        self.batches.append(batch)
        target = batch.input_ids.float().mean() / 100 + len(batch)
        return ((self.weight - target) ** 2).sum() * sum(batch.window.values()) / 100

    def validation_step(self, batch: SpeechBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        self.batches.append(batch)

    test_step = validation_step

    def predict_step(self, batch: SpeechBatch, batch_idx: int) -> list[str]:
        return batch.ids

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam([self.weight], lr=0.01)


def trainer(folder: Path, **options) -> Trainer:
    """A quiet Trainer on the CPU, without validation unless asked for."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    checkpoints = {"enable_checkpointing": False} if "callbacks" not in options else {}
    return Trainer(default_root_dir=folder, accelerator="cpu", **{**quiet, **checkpoints, **options})


def write_manifest(path: Path, wavs: list[Path], count: int) -> Path:
    """`count` spoken questions of different lengths."""
    lines = []
    for index in range(count):
        user = {"role": "user", "content": [{"type": "audio", "path": str(wavs[index % len(wavs)])}]}
        answer = {"role": "assistant", "content": "Paris. " * (index % 5 + 1), "units": [index % 9, 9]}
        lines.append(json.dumps({"id": f"r{index}", "messages": [user, answer]}))
    path.write_text("\n".join(lines))
    return path
