"""Training of the quickstart's vocoder: latents and durations of a voice, predicted from discrete units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from speechzoo.models import checkpoint
from speechzoo.names.spec import to_factory, to_spec
from speechzoo.names.trust import check_parts
from speechzoo.training.schedule import schedule_factory, with_schedule
from speechzoo.vocoders import LatentNetConfig, LatentVocoder
from speechzoo.vocoders.hifigan import HiFiGANGenerator


@dataclass
class LatentBatch:
    """Utterances of one voice: units and what the voice's generator was given for them."""

    units: Tensor  # [B, U]
    durations: Tensor  # [B, U] frames, 0 where padded
    latents: Tensor  # [B, F, C]

    def __len__(self) -> int:
        return len(self.units)

    def to(self, *args: Any, **kwargs: Any) -> LatentBatch:
        """A copy with every tensor moved (`torch.Tensor.to` arguments)."""
        return LatentBatch(**{field.name: getattr(self, field.name).to(*args, **kwargs) for field in fields(self)})


class LatentVocoderTraining(LightningModule):
    """Trains a `LatentVocoder`'s net against the voice's own latents (MSE) and durations (MSE of logarithms).

    No adversarial training: sound comes from a generator that is pretrained and stays as it is. Durations are the true
    ones in training and predicted afterwards. When training ends the vocoder is written into the run folder
    (`LatentVocoder.from_folder`).

    Args:
        generator: `{class_path, init_args}` of a function that gives the voice's pretrained `HiFiGANGenerator`.
        sample_rate: of its sound, Hz.
        net: fields of `LatentNetConfig`.
        duration_weight: factor of the durations' loss.
        optimizer: makes the optimizer from parameters.
        lr_scheduler: makes the schedule from (optimizer, number of optimizer steps); None keeps the rate.
    """

    vocoder: LatentVocoder

    def __init__(
        self,
        generator: dict[str, Any],
        sample_rate: int,
        net: dict[str, Any] | None = None,
        duration_weight: float = 0.1,
        optimizer: Callable[[Any], Optimizer] | None = None,
        lr_scheduler: Callable[[Optimizer, int], LRScheduler] | None = None,
    ) -> None:
        super().__init__()
        self.generator_spec = to_spec(generator)
        self.sample_rate, self.net_config, self.duration_weight = sample_rate, dict(net or {}), duration_weight
        self.num_units = LatentNetConfig(**self.net_config).num_units
        self.optimizer_factory = to_factory(to_spec(optimizer or torch.optim.AdamW))
        self.scheduler_factory = schedule_factory(lr_scheduler)
        self.save_hyperparameters(
            {
                "generator": self.generator_spec,
                "sample_rate": sample_rate,
                "net": self.net_config,
                "duration_weight": duration_weight,
                "optimizer": to_spec(optimizer),
                "lr_scheduler": to_spec(lr_scheduler),
            }
        )

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, trust_code: bool = False, **kwargs: Any) -> Any:
        """See `SpeechLLM.load_from_checkpoint`."""
        named = checkpoint.read(checkpoint_path).get("hyper_parameters", {})
        check_parts({key: part for key, part in named.items() if key not in kwargs}, checkpoint_path, trust_code)
        return super().load_from_checkpoint(checkpoint_path, *args, **{"weights_only": True, **kwargs})

    def configure_model(self) -> None:
        """Build the vocoder around the voice's generator. Called by Lightning; again it does nothing."""
        if hasattr(self, "vocoder"):
            return
        generator: HiFiGANGenerator = to_factory(self.generator_spec)()
        self.vocoder = LatentVocoder(self.net_config, generator.arguments, self.sample_rate)
        self.vocoder.generator.load_state_dict(generator.state_dict())
        self.vocoder.generator.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> LatentVocoderTraining:
        """Training mode for the net; the generator stays in eval mode."""
        super().train(mode)
        if hasattr(self, "vocoder"):
            self.vocoder.generator.eval()
        return self

    def on_fit_start(self) -> None:
        """Latents are predicted relative to the training data's mean, in units of its one standard deviation."""
        trainer: Any = self.trainer  # Lightning's own type does not tell of `datamodule`
        mean, scale = trainer.datamodule.statistics()
        self.vocoder.mean.copy_(mean)
        self.vocoder.scale.fill_(scale)

    def forward(self, batch: LatentBatch) -> dict[str, Tensor]:
        """Losses by name: `latent` over frames and channels, `duration` over units."""
        net, vocoder = self.vocoder.net, self.vocoder
        mask = batch.durations > 0
        states, logs = net.encode(batch.units, mask)
        lens = mask.sum(dim=1).tolist()
        rows = [net.expand(s[:n], d[:n]) for s, d, n in zip(states, batch.durations, lens, strict=True)]
        frames = pad_sequence(rows, batch_first=True)
        real = torch.arange(frames.shape[1], device=frames.device) < batch.durations.sum(dim=1, keepdim=True)
        predicted = net.latents(frames, real).float()
        wanted = (batch.latents - vocoder.mean) / vocoder.scale
        return {
            "latent": (predicted - wanted)[real].square().mean(),
            "duration": (logs.float() - batch.durations.clamp(min=1).log())[mask].square().mean(),
        }

    def training_step(self, batch: LatentBatch, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: LatentBatch, batch_idx: int) -> None:
        self._step(batch, "val")

    def _step(self, batch: LatentBatch, stage: str) -> Tensor:
        losses: dict[str, Tensor] = self(batch)
        loss = losses["latent"] + self.duration_weight * losses["duration"]
        units = int((batch.durations > 0).sum())
        # Processes have to agree on which checkpoint is the best.
        shared: dict[str, Any] = {"batch_size": units, "sync_dist": stage == "val"}
        for name, value in losses.items():
            self.log(f"{stage}/{name}_loss", value.detach(), prog_bar=stage == "train", **shared)
        self.log(f"{stage}/loss", loss.detach(), **shared)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer_factory(self.vocoder.net.parameters())
        return with_schedule(optimizer, self.scheduler_factory, self.trainer)

    def on_save_checkpoint(self, saved: dict[str, Any]) -> None:
        saved["trained"] = checkpoint.trained_names(self)
        saved["model_class"] = f"{type(self).__module__}.{type(self).__qualname__}"

    def on_train_end(self) -> None:
        if self.trainer.is_global_zero and not getattr(self.trainer, "fast_dev_run", False):
            self.vocoder.save(self.trainer.default_root_dir)
