"""Random numbers go on, and no checkpoint falls into the middle of a step (`training/test_kill.py` kills runs)."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_module import TinyModule, loader

from speechzoo.callbacks import ExactResume
from speechzoo.callbacks.exact_resume import set_states, states_now
from speechzoo.training.schedule import schedule_factory, with_schedule

COSINE = "speechzoo.training.WarmupCosine"
TORCH = ("CosineAnnealingLR", "PolynomialLR")


def test_all_generators_go_on(tmp_path: Path) -> None:
    """Also through a file that is read as plain data."""
    torch.save(states_now(), tmp_path / "states.pt")
    drawn = [random.random(), np.random.rand(), np.random.normal(), float(torch.rand(()))]
    set_states(torch.load(tmp_path / "states.pt", weights_only=True))
    assert [random.random(), np.random.rand(), np.random.normal(), float(torch.rand(()))] == drawn


class Noisy(TinyModule):
    """Its loss draws a random number."""

    def training_step(self, batch, index):
        self.drawn = [*getattr(self, "drawn", []), float(torch.rand(()))]
        return super().training_step(batch, index)


def run(make_trainer, folder: Path, steps: int, ckpt: Path | None = None) -> Noisy:
    module = Noisy()
    saving = ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    torch.manual_seed(len(str(ckpt)))
    trainer = make_trainer(
        callbacks=[ExactResume(), saving], accumulate_grad_batches=2, max_steps=steps, enable_checkpointing=True
    )
    trainer.fit(module, loader(8), ckpt_path=ckpt)
    return module


def test_a_continued_run_draws_what_the_unbroken_one_draws(make_trainer, tmp_path: Path) -> None:
    whole = run(make_trainer, tmp_path / "whole", 4).drawn
    first = run(make_trainer, tmp_path / "parts", 2).drawn
    rest = run(make_trainer, tmp_path / "parts", 4, tmp_path / "parts" / "last.ckpt").drawn
    assert first + rest == whole and len(whole) == 8


class Scheduled(TinyModule):
    """Keeps the rates that its steps are made with."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.schedule, self.rates = schedule_factory(kind), []

    def training_step(self, batch, index):
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return super().training_step(batch, index)

    def configure_optimizers(self):
        return with_schedule(super().configure_optimizers(), self.schedule, self.trainer)


def rates(make_trainer, folder: Path, kind: str, epochs: int, accumulate: int = 1, ckpt: Path | None = None) -> list:
    module, saving = Scheduled(kind), ModelCheckpoint(folder, save_last=True, save_top_k=0, every_n_train_steps=1)
    trainer = make_trainer(
        callbacks=[ExactResume(), saving],
        max_epochs=epochs,
        enable_checkpointing=True,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(module, loader(4), ckpt_path=ckpt)
    return module.rates


@pytest.mark.parametrize("kind", [COSINE, *(f"torch.optim.lr_scheduler.{k}" for k in TORCH)])
def test_a_run_with_more_epochs_has_the_rates_of_the_longer_one(make_trainer, tmp_path: Path, kind: str) -> None:
    """From its first step on: the checkpoint holds the length and the last rate of the shorter one."""
    whole = rates(make_trainer, tmp_path / "whole", kind, 2)
    rates(make_trainer, tmp_path, kind, 1)
    assert rates(make_trainer, tmp_path, kind, 2, ckpt=tmp_path / "last.ckpt") == pytest.approx(whole[4:])


def test_a_schedule_that_is_over_is_told_of(make_trainer, tmp_path: Path) -> None:
    rates(make_trainer, tmp_path, COSINE, 2)
    with pytest.warns(UserWarning, match="that of 6 steps, and this run goes on from step 8"):
        assert set(rates(make_trainer, tmp_path, COSINE, 3, 2, tmp_path / "last.ckpt")) == {0.0}


def test_no_checkpoint_between_micro_batches(make_trainer, tmp_path: Path) -> None:
    """After a resume Lightning would save the step it came from again, one micro-batch later."""
    run(make_trainer, tmp_path, 2)
    places: list[int] = []

    class Spy(ExactResume):
        def on_save_checkpoint(self, trainer, pl_module, checkpoint) -> None:
            places.append(trainer.fit_loop.epoch_loop.batch_progress.current.ready)
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    for told, expected in ((True, [6, 8]), (False, [5, 6, 8])):
        spy = Spy()
        if not told:
            spy.on_train_start = lambda *_: None  # type: ignore[method-assign]
        places.clear()
        saving = ModelCheckpoint(tmp_path / "more", save_last=True, save_top_k=0, every_n_train_steps=1)
        options = {"accumulate_grad_batches": 2, "max_steps": 4, "enable_checkpointing": True}
        trainer = make_trainer(callbacks=[spy, saving], **options)
        if told:
            trainer.fit(Noisy(), loader(8), ckpt_path=tmp_path / "last.ckpt")
        else:
            with pytest.warns(UserWarning, match="a checkpoint in the middle of step 3"):
                trainer.fit(Noisy(), loader(8), ckpt_path=tmp_path / "last.ckpt")
        assert places == expected
