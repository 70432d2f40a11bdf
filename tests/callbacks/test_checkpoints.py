"""`last.ckpt` is the end of training, `best.ckpt` the best validation with its own score, and both outlive a resume."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_runs import saved, write_config, zoo

from speechzoo.callbacks import BestCheckpoint, LastCheckpoint
from speechzoo.callbacks.checkpoints import separate

TWO = [{"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 20}}, {"class_path": "BestCheckpoint"}]
ONE = [
    {
        "class_path": "ModelCheckpoint",
        "init_args": {
            "filename": "best",
            "monitor": "val/loss",
            "save_last": True,
            "every_n_train_steps": 20,
            "enable_version_counter": False,
        },
    }
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    write_config(folder / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    return folder


def fit(folder: Path, name: str, steps: int, callbacks: list[Any], *rest: str) -> Path:
    """Run folder after so many steps; validation every 24."""
    config = yaml.safe_load((folder / "tiny.yaml").read_text())
    config["name"] = name
    config["trainer"] |= {"callbacks": callbacks, "val_check_interval": 24, "check_val_every_n_epoch": None}
    for callback in callbacks:
        if callback["class_path"] == "ModelCheckpoint":
            callback["init_args"]["dirpath"] = str(folder / name)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(config))
    zoo("fit", "-c", folder / f"{name}.yaml", f"--vars.steps={steps}", "--doctor.enabled=false", *rest)
    return folder / name


@pytest.mark.parametrize(
    ("callback", "val", "there"),
    [
        ({"class_path": "BestCheckpoint"}, ["a", "b"], "val/a/loss, val/a/lm_loss, val/b/loss"),
        ({"class_path": "EarlyStopping", "init_args": {"monitor": "val/los"}}, None, "val/loss, val/lm_loss"),
    ],
)
def test_a_score_that_will_not_be_there_is_named_before_training(folder: Path, callback, val, there) -> None:
    more = []
    if val is not None:
        manifest = yaml.safe_load((folder / "tiny.yaml").read_text())["data"]["init_args"]["val"]
        more = [f"--data.init_args.val={dict.fromkeys(val, manifest)}"]
    with pytest.raises(ValueError, match=f"monitor: validation has no score 'val/.*, it has {there}"):
        fit(folder, "unscored", 2, [callback], *more)
    assert not (folder / "unscored").exists()


def scores(run: Path) -> dict[int, float]:
    """Validation losses by the number of steps done."""
    found = {}
    for file in sorted(run.glob("csv/version_*/metrics.csv")):
        with file.open(newline="") as handle:
            found |= {int(row["step"]) + 1: float(row["val/loss"]) for row in csv.DictReader(handle) if row["val/loss"]}
    return found


def score_of(checkpoint: dict[str, Any]) -> float:
    (state,) = (state for key, state in checkpoint["callbacks"].items() if "'monitor': 'val/loss'" in key)
    return float(state["best_model_score"])


@pytest.mark.parametrize("callbacks", [TWO, ONE], ids=["two", "one of Lightning's"])
def test_the_end_is_saved_and_the_best_has_its_own_score(folder: Path, callbacks: list[Any]) -> None:
    """97 steps, a save every 20, a validation every 24: nothing is a multiple of anything."""
    run = fit(folder, f"end_{len(callbacks)}", 97, callbacks)
    last, best, seen = saved(run / "last.ckpt"), saved(run / "best.ckpt"), scores(run)
    assert last["global_step"] == 97 and set(seen) == {24, 48, 72, 96}
    assert seen[best["global_step"]] == min(seen.values())
    assert score_of(best) == pytest.approx(min(seen.values()), abs=1e-6)
    assert sorted(file.name for file in run.glob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def test_the_best_is_not_the_last_where_training_gets_worse(folder: Path) -> None:
    lr = "--model.init_args.optimizer.init_args.lr=0.3"
    run = fit(folder, "worse", 60, TWO, lr, "--model.init_args.lr_scheduler=null")
    best, seen = saved(run / "best.ckpt"), scores(run)
    assert seen[24] != seen[48] and seen[best["global_step"]] == min(seen.values())
    assert score_of(best) == pytest.approx(min(seen.values()), abs=1e-6)


@pytest.mark.parametrize("stop", [13, 24, 20], ids=["in an epoch", "at a validation", "at a save"])
def test_an_end_can_be_gone_on_from_exactly(folder: Path, stop: int) -> None:
    """The schedule ends with the run, so it is left out; everything else is the unbroken run's."""
    plain = "--model.init_args.lr_scheduler=null"
    whole = fit(folder, f"whole_{stop}", 31, TWO, plain)
    parts = fit(folder, f"parts_{stop}", stop, TWO, plain)
    assert saved(parts / "last.ckpt")["global_step"] == stop
    fit(folder, f"parts_{stop}", 31, TWO, plain, "--ckpt_path=last")
    one, other = (saved(run / "last.ckpt") for run in (whole, parts))
    assert one["global_step"] == other["global_step"] == 31
    assert all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])
    epochs = [file["loops"]["fit_loop"]["epoch_progress"]["total"] for file in (one, other)]
    assert epochs[0] == epochs[1] and epochs[0]["processed"] == 10
    one, other = (saved(run / "best.ckpt") for run in (whole, parts))
    assert one["global_step"] == other["global_step"] == 24 and score_of(one) == score_of(other)


def test_the_score_to_beat_is_that_of_the_file(folder: Path) -> None:
    """A `last.ckpt` of step 24 was written before its validation: gone on from there, a worse step is not the best."""
    again = {"filename": "at_{step}", "every_n_train_steps": 24, "auto_insert_metric_name": False, "save_top_k": -1}
    worse = {"class_path": "BestCheckpoint", "init_args": {"mode": "max"}}  # so that a loss that falls gets worse
    callbacks = [TWO[0], worse, {"class_path": "ModelCheckpoint", "init_args": again}]
    plain = "--model.init_args.lr_scheduler=null"
    run = fit(folder, "beat", 25, callbacks, plain)
    before = score_of(saved(run / "best.ckpt"))
    at_24 = saved(run / "at_24.ckpt")["callbacks"]
    assert not any(state.get("best_model_score") for state in at_24.values())
    shutil.copy(run / "at_24.ckpt", run / "last.ckpt")
    fit(folder, "beat", 48, callbacks, plain, "--ckpt_path=last")
    assert scores(run)[48] < before
    assert saved(run / "best.ckpt")["global_step"] == 24 and saved(run / "last.ckpt")["global_step"] == 48


def test_epochs_and_early_stops_end_with_a_checkpoint(folder: Path) -> None:
    steps = ["--trainer.max_epochs=3", "--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1"]
    run = fit(
        folder, "epochs", -1, [{"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": 100}}], *steps
    )
    assert saved(run / "last.ckpt")["global_step"] == 9
    fit(folder, "epochs", -1, TWO[:1], "--trainer.max_epochs=4", *steps[1:], "--ckpt_path=last")
    assert saved(run / "last.ckpt")["global_step"] == 12
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "patience": 1, "min_delta": 1e9}}
    run = fit(folder, "early", 500, [TWO[0], stop])
    assert saved(run / "last.ckpt")["global_step"] == 48  # the second validation, no multiple of 20
    run = fit(folder, "time", -1, [TWO[0]], "--trainer.max_time=00:00:00:01", "--model.init_args.lr_scheduler=null")
    assert saved(run / "last.ckpt")["global_step"] > 0


def test_what_lightning_alone_does_well_is_left_alone() -> None:
    train = ModelCheckpoint(monitor="train/loss", every_n_train_steps=5)
    plain = ModelCheckpoint(filename="{epoch}", save_top_k=-1)
    assert separate([train, plain]) == [train, plain]
    assert train._every_n_train_steps == 5 and plain._every_n_epochs == 1
    last, best = separate([ModelCheckpoint("there", monitor="val/loss", save_last=True, every_n_train_steps=5)])
    assert isinstance(last, LastCheckpoint) and last._every_n_train_steps == 5 and str(last.dirpath).endswith("there")
    assert best.save_last is False and best._every_n_train_steps == 0 and best._every_n_epochs == 1
    (only,) = separate([ModelCheckpoint(save_last="link", save_top_k=0)])
    assert isinstance(only, LastCheckpoint) and only._every_n_epochs == 1
    both = [LastCheckpoint(3), BestCheckpoint()]
    assert separate(both) == both


@pytest.mark.slow
@settings(max_examples=3, deadline=None, derandomize=True)
@given(stops=st.sets(st.integers(1, 11), min_size=1, max_size=4), every=st.integers(1, 14))
@example(stops={3, 6, 9}, every=14)
@example(stops={6, 7}, every=14)
def test_however_often_it_is_stopped_a_run_of_epochs_is_the_same(folder: Path, stops: set[int], every: int) -> None:
    """Four epochs of three batches. Lightning miscounts epochs after a stop at the end of one."""
    last = [{"class_path": "LastCheckpoint", "init_args": {"every_n_train_steps": every}}]
    plain = ["--model.init_args.lr_scheduler=null", "--trainer.log_every_n_steps=1", "--trainer.limit_val_batches=0"]
    epochs = [*plain, "--vars.steps=-1", "--trainer.max_epochs=4", "--trainer.check_val_every_n_epoch=1",
              "--trainer.val_check_interval=1.0"]  # fmt: skip
    if not (folder / "unbroken").exists():
        fit(folder, "unbroken", -1, last, *epochs)
    name = f"often_{len(list(folder.glob('often_*.yaml')))}"
    for number, stop in enumerate(sorted(stops)):
        run = fit(folder, name, stop, last, *plain, *(["--ckpt_path=last"] if number else []))
        assert saved(run / "last.ckpt")["global_step"] == stop
    fit(folder, name, -1, last, *epochs, "--ckpt_path=last")
    one, other = (saved(run / "last.ckpt") for run in (folder / "unbroken", run))
    assert one["global_step"] == other["global_step"] == 12
    assert all(torch.equal(one["state_dict"][key], other["state_dict"][key]) for key in one["state_dict"])
    assert one["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"] == 4
    assert other["loops"]["fit_loop"]["epoch_progress"]["total"]["ready"] == 4


@pytest.mark.parametrize("accumulate", [2, 3])
def test_steps_of_several_batches_end_with_their_checkpoint(folder: Path, accumulate: int) -> None:
    run = fit(folder, f"sum_{accumulate}", 7, TWO[:1], f"--trainer.accumulate_grad_batches={accumulate}")
    assert saved(run / "last.ckpt")["global_step"] == 7
