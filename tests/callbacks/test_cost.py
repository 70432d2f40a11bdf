"""The cost of a stage: exact counts, final losses, and the same totals when the stage is stopped and resumed."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_models import CONVERSATIONS, make
from tiny_module import TinyModule, loader
from torch.utils.data import DataLoader

from speechzoo.callbacks import LastCheckpoint, StageCost
from speechzoo.callbacks.cost import peak_memory_mb
from speechzoo.data import encode_batch

KEYS = {
    "seconds", "validation_seconds", "steps", "examples", "tokens", "supervised_tokens", "units",
    "trainable_parameters", "total_parameters", "peak_memory_mb", "train_loss", "val_loss",
    "commit",
}  # fmt: skip


def test_summary_of_one_run(tmp_path, make_trainer):
    module = TinyModule()
    trainer = make_trainer(callbacks=[StageCost()], logger=CSVLogger(tmp_path / "logs"))
    trainer.fit(module, loader(5), loader(2))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == KEYS
    assert summary["steps"] == 5 and summary["examples"] == 10
    assert summary["tokens"] == 10 * (5 - 1 + 3)  # 5 tokens, one of them a clip of 3 positions
    assert summary["supervised_tokens"] == 20 and summary["units"] == 30
    assert summary["trainable_parameters"] == 8 * 12 + 12
    assert summary["total_parameters"] == 2 * 8 * 12 + 12
    assert 0 < summary["validation_seconds"] < summary["seconds"] < 60
    assert summary["peak_memory_mb"] > 50
    assert summary["val_loss"] == pytest.approx(float(trainer.callback_metrics["val/loss"]))
    with open(trainer.loggers[0].log_dir + "/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 5
    assert summary["train_loss"] == pytest.approx(sum(losses) / 5, rel=1e-5)
    rates = [float(row["train/tokens_per_second"]) for row in rows if row["train/tokens_per_second"]]
    assert len(rates) == 5 and min(rates) > 0
    assert not module._forward_hooks


def test_a_resumed_stage_counts_as_one(tmp_path, make_trainer):
    torch.manual_seed(0)
    make_trainer(callbacks=[StageCost(), ModelCheckpoint(tmp_path, save_last=True)], max_steps=4,
                 max_epochs=-1, enable_checkpointing=True).fit(TinyModule(), loader(4), loader(1))  # fmt: skip
    first = json.loads((tmp_path / "summary.json").read_text())
    monitor = StageCost()
    trainer = make_trainer(callbacks=[monitor], max_steps=7, max_epochs=-1)
    trainer.fit(TinyModule(), loader(4), loader(1), ckpt_path=tmp_path / "last.ckpt")
    both = json.loads((tmp_path / "summary.json").read_text())
    assert (first["steps"], both["steps"]) == (4, 7)
    assert (first["examples"], both["examples"]) == (8, 14)
    assert both["tokens"] == 14 * 7 and both["supervised_tokens"] == 28
    assert both["seconds"] > monitor._before["seconds"] > 0
    assert both["peak_memory_mb"] >= first["peak_memory_mb"] * 0.99


def test_resuming_a_finished_stage_keeps_its_numbers(tmp_path, make_trainer):
    arguments = dict(max_steps=4, max_epochs=-1, enable_checkpointing=True)
    make_trainer(callbacks=[StageCost(), ModelCheckpoint(tmp_path, save_last=True)], **arguments).fit(
        TinyModule(), loader(4), loader(1)
    )
    first = json.loads((tmp_path / "summary.json").read_text())
    make_trainer(callbacks=[StageCost()], max_steps=4, max_epochs=-1).fit(
        TinyModule(), loader(4), loader(1), ckpt_path=tmp_path / "last.ckpt"
    )
    again = json.loads((tmp_path / "summary.json").read_text())
    for key in ("steps", "examples", "tokens", "train_loss", "val_loss"):
        assert again[key] == pytest.approx(first[key])


def test_losses_of_all_ranks_go_on_after_a_resume(make_trainer, monkeypatch):
    """The checkpoint is one process's; losses of its own alone would take the place of the others'."""
    saved = {**StageCost().state_dict(), "losses": [[3.0, 2], [0.0, 0], [5.0, 2]]}
    means = []
    for rank in range(2):
        monkeypatch.setattr("speechzoo.callbacks.cost.rank", lambda rank=rank: rank)
        monitor = StageCost()
        monitor.load_state_dict(saved)
        trainer = make_trainer(max_steps=0)
        assert len(monitor._losses) == 3
        monitor.on_fit_start(trainer, module := TinyModule())
        means.append(monitor.summary(trainer, module)["train_loss"])
        assert monitor.state_dict()["losses"] == (saved["losses"] if rank == 0 else [[0.0, 0]] * 3)
    assert means == [2.0, None]  # of which the sum over ranks is taken


def test_a_finished_stage_that_is_continued_keeps_its_summary(tmp_path, make_trainer):
    """`last.ckpt` is saved before the validation of the same step, which a run without a step does not repeat."""
    arguments = dict(max_steps=4, max_epochs=-1, enable_checkpointing=True, val_check_interval=2)

    def fit(**more) -> dict:
        callbacks = [StageCost(), LastCheckpoint(every_n_train_steps=1)]
        make_trainer(callbacks=callbacks, **arguments).fit(TinyModule(), loader(4), loader(1), **more)
        return json.loads((tmp_path / "summary.json").read_text())

    first = fit()
    assert fit(ckpt_path=tmp_path / "last.ckpt") == first
    (tmp_path / "summary.json").write_text(json.dumps({**first, "steps": 2}))  # of a shorter run before
    assert fit(ckpt_path=tmp_path / "last.ckpt")["steps"] == 4


def test_accumulation_counts_every_batch_once(tmp_path, make_trainer):
    make_trainer(callbacks=[StageCost()], accumulate_grad_batches=2).fit(TinyModule(), loader(4))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["examples"] == 8 and summary["tokens"] == 56
    assert summary["val_loss"] is None


def test_speed_is_that_of_whole_steps(tmp_path, make_trainer, monkeypatch):
    """With a second for each micro-batch and ten for the optimizer's step: 4 x 14 tokens in 14 seconds."""
    now = [0.0]
    monkeypatch.setattr("speechzoo.callbacks.cost.time.monotonic", lambda: now[0])

    class Slow(TinyModule):
        def training_step(self, batch, index):
            now[0] += 1
            return super().training_step(batch, index)

        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)
            now[0] += 10

    logger = CSVLogger(tmp_path / "logs")
    make_trainer(callbacks=[StageCost()], accumulate_grad_batches=4, logger=logger).fit(Slow(), loader(8))
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        speeds = [float(row["train/tokens_per_second"]) for row in csv.DictReader(file)]
    assert speeds == pytest.approx([4 * 14 / 14, 4 * 14 / 14])


def test_a_batch_without_a_target_has_no_loss(tmp_path, make_trainer, tiny_llm_dir, tiny_whisper_pt):
    """A unit decoder alone learns, and one of two batches has no units: 0 is not its loss."""
    steady = partial(torch.optim.SGD, lr=0.0)
    frozen = ["^encoder\\.", "^llm\\.", "^adaptor\\."]
    model = make("llama_omni", tiny_llm_dir, tiny_whisper_pt, freeze=frozen, loss_weights={"lm": 0}, optimizer=steady)
    spoken, silent = (encode_batch(model.prompt, CONVERSATIONS, True, "right") for _ in range(2))
    silent = replace(silent, units=None, unit_lens=None, unit_turns=None)
    logger = CSVLogger(tmp_path / "logs")
    trainer = make_trainer(callbacks=[StageCost()], logger=logger)
    trainer.fit(model, DataLoader([spoken, silent], batch_size=None))
    wanted = float(model.eval()(spoken).losses["ctc"].detach())
    assert wanted > 1
    assert json.loads((tmp_path / "summary.json").read_text())["train_loss"] == pytest.approx(wanted, rel=1e-4)
    with (Path(logger.log_dir) / "metrics.csv").open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert losses and losses == pytest.approx([wanted] * len(losses), rel=1e-4)  # Lightning says the last one again


@pytest.mark.slow
def test_two_ranks_are_summed(tmp_path, make_trainer):
    trainer = make_trainer(callbacks=[StageCost()], devices=2, strategy="ddp_spawn")
    trainer.fit(TinyModule(), loader(4))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["examples"] == 8 and summary["tokens"] == 56


def test_peak_memory_grows_with_use():
    before = peak_memory_mb(torch.device("cpu"))
    block = torch.ones(75_000_000)  # 300 MB
    assert block.sum() > 0
    assert peak_memory_mb(torch.device("cpu")) > max(before, 300)
