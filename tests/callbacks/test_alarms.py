"""Alarms for runs that go on and learn nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.utils.data import DataLoader

from speechzoo.callbacks import AllBlank, DeadPart, ExplodingNorms
from speechzoo.types import SpeechOutput


class Adaptor(nn.Module):
    """A layer that can be dead in several ways."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.layer, self.way = nn.Linear(4, 4), way

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out = self.layer(x)
        if self.way == "constant":
            out = out * 1e-6 + 1
        return out, torch.full((len(x),), x.shape[1])


class Module(LightningModule):
    """An adaptor and a unit decoder of three units; the blank is unit 3."""

    def __init__(self, way: str = "") -> None:
        torch.manual_seed(0)
        super().__init__()
        self.way, self.adaptor, self.unit_decoder = way, Adaptor(way), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> SpeechOutput:
        states, lens = self.adaptor(x)
        if self.way == "no gradient":
            states = states * 0
        logits = self.unit_decoder(states)
        logits = logits + (torch.tensor([0, 0, 0, 99.0]) if self.way == "blank" else 0)
        loss = logits.square().mean() * (1e6 if self.way == "explode" and self.global_step == 8 else 1)
        mask = torch.ones(x.shape[:2], dtype=torch.bool)
        out = SpeechOutput({"ctc": loss}, {}, states, mask, mask.long(), mask.long())
        out.unit_logits, out.unit_logit_lens = logits, lens
        return out

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self(batch).losses["ctc"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0 if self.way in ("no update", "blank") else 0.01)


def alarms(make_trainer, module: Module, callback: Any, batches: int = 10, **options: Any) -> tuple[list[str], dict]:
    """Warnings that are alarms, and the last values logged."""
    torch.manual_seed(1)
    data = DataLoader([torch.randn(3, 5, 4) for _ in range(batches)], batch_size=None)
    trainer = make_trainer(callbacks=[callback], **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data)
    told = [str(warning.message) for warning in caught if "ALARM" in str(warning.message)]
    return told, {name: float(value) for name, value in trainer.logged_metrics.items()}


@pytest.mark.parametrize(
    ("way", "named"),
    [
        ("no gradient", "its gradient relative"),
        ("no update", "what a step changes"),
        ("constant", "the relative spread"),
    ],
)
def test_a_dead_adaptor(make_trainer, way: str, named: str) -> None:
    told, logged = alarms(make_trainer, Module(way), DeadPart(every_n_steps=2, patience=3))
    assert len(told) == 1 and "ALARM dead_adaptor at step 5" in told[0] and named in told[0]
    assert logged["alarm/dead_adaptor"] == 1


def test_a_living_one_and_a_frozen_one(make_trainer) -> None:
    told, logged = alarms(make_trainer, Module(), DeadPart(every_n_steps=2, patience=1), accumulate_grad_batches=2)
    assert not told and logged["alarm/dead_adaptor"] == 0
    frozen = Module("no gradient")
    frozen.adaptor.requires_grad_(False)
    assert alarms(make_trainer, frozen, DeadPart(every_n_steps=1, patience=1)) == ([], {})
    with pytest.raises(ValueError, match="has no part 'adapter'"):
        make_trainer(callbacks=[DeadPart("adapter")]).fit(Module(), DataLoader([torch.ones(1, 2, 4)], batch_size=None))


def test_nothing_but_blanks(make_trainer) -> None:
    blank = {"every_n_steps": 2, "patience": 2}
    told, logged = alarms(make_trainer, Module("blank"), AllBlank(after_steps=5, **blank))
    assert len(told) == 1 and "ALARM all_blank at step 8: 100.0%" in told[0] and logged["train/blank_share"] == 1
    assert not alarms(make_trainer, Module("blank"), AllBlank(after_steps=50, **blank))[0]
    told, logged = alarms(make_trainer, Module(), AllBlank(after_steps=0, **blank))
    assert not told and 0 < logged["train/blank_share"] < 1


def test_exploding_norms(make_trainer) -> None:
    told, logged = alarms(make_trainer, Module("explode"), ExplodingNorms(every_n_steps=1))
    assert any("exploding_unit_decoder at step 8: the gradient of unit_decoder is" in line for line in told)
    assert logged["norm/adaptor"] > 3
    told, _ = alarms(make_trainer, Module("explode"), ExplodingNorms(every_n_steps=1, gradient_factor=float("inf")))
    assert any("exploding_adaptor at step 9: the weights of adaptor are" in line for line in told)
    assert not alarms(make_trainer, Module(), ExplodingNorms(every_n_steps=1))[0]
