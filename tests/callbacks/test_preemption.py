"""A run that is told to stop saves after its step, asks for another turn and goes on as if nothing had been."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning import Callback
from tiny_runs import saved, write_config, zoo

from speechzoo.commands.training import ZooCLI

STEADY = ["--model.init_args.lr_scheduler=null", "--trainer.accumulate_grad_batches=2"]
STEADY += ["--trainer.callbacks+=speechzoo.callbacks.Preemption"]


class Tell(Callback):
    """Sends the signal to its own process in the first micro-batch of the third step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == 2 and trainer.fit_loop.epoch_loop.batch_progress.total.ready == 5:
            os.kill(os.getpid(), SIGNAL)


class TellAll(Tell):
    """As SLURM preempts a job: the signal goes to the data loader's workers as well, and to them first."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        workers = multiprocessing.active_children()
        assert workers
        if trainer.global_step == 2:
            for worker in workers:
                os.kill(worker.pid, SIGNAL)
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)


SIGNAL = signal.SIGUSR1


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("told") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


def fit(config: Path, name: str, *more: object) -> ZooCLI:
    return zoo("fit", "-c", config, f"--name={name}", "--trainer.max_steps=4", *STEADY, *more)


def test_told_in_the_middle_of_a_step(config: Path, tmp_path: Path, monkeypatch) -> None:
    scontrol, asked = tmp_path / "scontrol", tmp_path / "asked"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")  # Lightning then does not take this process for srun's
    before = signal.getsignal(signal.SIGUSR1)

    fit(config, "told", f"--trainer.callbacks+={__name__}.Tell")
    last = config.parent / "told" / "last.ckpt"
    assert saved(last)["global_step"] == 3 and asked.read_text() == "requeue 4711\n"
    assert signal.getsignal(signal.SIGUSR1) == before

    fit(config, "told", "--ckpt_path", last)
    fit(config, "unbroken")
    one, other = (saved(config.parent / name / "last.ckpt") for name in ("told", "unbroken"))
    assert one["global_step"] == other["global_step"] == 4
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())


def test_told_in_the_last_step_a_run_ends_as_it_would(config: Path, monkeypatch) -> None:
    """Continued, it would do no step, and have no validation of its last one."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    options = ["--trainer.max_steps=3", "--trainer.val_check_interval=2", f"--trainer.callbacks+={__name__}.Tell"]
    cli = fit(config, "last", *options)
    assert saved(config.parent / "last" / "last.ckpt")["global_step"] == cli.trainer.global_step == 3
    assert cli.trainer.limit_val_batches == 1 and "val/loss" in cli.trainer.callback_metrics


def test_told_before_the_least_number_of_steps(config: Path, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    least = ["--trainer.min_steps=4", "--trainer.min_epochs=5"]
    cli = fit(config, "least", f"--trainer.callbacks+={__name__}.Tell", *least)
    assert cli.trainer.global_step == saved(config.parent / "least" / "last.ckpt")["global_step"] == 3


def test_sigterm_saves_too(config: Path, monkeypatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(f"{__name__}.SIGNAL", signal.SIGTERM)
    fit(config, "terminated", f"--trainer.callbacks+={__name__}.Tell")
    assert saved(config.parent / "terminated" / "last.ckpt")["global_step"] == 3


def test_sigterm_to_the_workers_as_well(config: Path, monkeypatch) -> None:
    """They go on reading until the step is done, and none is left behind."""
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(f"{__name__}.SIGNAL", signal.SIGTERM)
    fit(config, "all", "--data.init_args.num_workers=2", f"--trainer.callbacks+={__name__}.TellAll")
    assert saved(config.parent / "all" / "last.ckpt")["global_step"] == 3
    assert not multiprocessing.active_children()
