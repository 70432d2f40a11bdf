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
