"""One folder holds one run: who may write into it, from when on, and which weights are meant."""

from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import saved, write_config, zoo

from speechzoo.cli import main
from speechzoo.commands.training import run
from speechzoo.interop.hub import load_run
from speechzoo.system.locks import claim

LR = "--model.init_args.optimizer.init_args.lr"


@pytest.fixture
def config(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


def files(folder: Path) -> dict[str, bytes]:
    """All files but the lock, with their content."""
    found = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".lock"))
    return {str(file.relative_to(folder)): file.read_bytes() for file in found}


def say(capsys, *arguments: object) -> tuple[int, str]:
    code = main([str(argument) for argument in arguments])
    return code, capsys.readouterr().err.strip().splitlines()[-1]


def test_a_second_fit_is_refused_and_changes_nothing(config: Path, tmp_path: Path, capsys) -> None:
    zoo("fit", "-c", config)
    before = files(tmp_path / "tiny")
    code, error = say(capsys, "fit", "-c", config, "--vars.steps=6", f"{LR}=0.05")
    assert code == 1 and files(tmp_path / "tiny") == before
    assert error.startswith(f"speechzoo: {tmp_path}/tiny holds a run (last.ckpt)")
    assert all(way in error for way in ("--ckpt_path last", "--name", "--overwrite"))
    elsewhere = tmp_path / "other" / "last.ckpt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes((tmp_path / "tiny" / "last.ckpt").read_bytes())
    code, error = say(capsys, "fit", "-c", config, f"--ckpt_path={elsewhere}")
    assert code == 1 and "holds a run" in error and files(tmp_path / "tiny") == before


def test_a_configuration_that_somebody_wrote_is_not_replaced(config: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "tiny").mkdir()
    own = config.rename(tmp_path / "tiny" / "config.yaml")
    before = own.read_bytes()
    for overwrite in ("false", "true"):
        code, error = say(capsys, "fit", "-c", own, f"--overwrite={overwrite}")
        assert code == 1 and "config.yaml: no run wrote this file" in error and own.read_bytes() == before
    zoo("fit", "-c", own, "--name=other")
    again = tmp_path / "other" / "config.yaml"
    zoo("fit", "-c", again, "--overwrite=true")  # what a run wrote may be used in its place
    zoo("fit", "-c", again, "--ckpt_path=last", "--vars.steps=4")


def test_overwritten_a_folder_holds_the_second_run_alone(config: Path, tmp_path: Path) -> None:
    zoo("fit", "-c", config)
    first = saved(tmp_path / "tiny" / "last.ckpt")["state_dict"]
    (tmp_path / "tiny" / "predictions.jsonl").write_text("{}\n")
    (tmp_path / "tiny" / "notes.txt").write_text("mine")
    cli = zoo("fit", "-c", config, "--vars.steps=6", f"{LR}=0.05", "--overwrite=true")
    kept = yaml.safe_load((tmp_path / "tiny" / "config.yaml").read_text())
    assert kept["trainer"]["max_steps"] == 6 and kept["overwrite"] is False and kept["ckpt_path"] is None
    assert kept["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    last = saved(tmp_path / "tiny" / "last.ckpt")
    assert last["global_step"] == 6 and sorted(p.name for p in (tmp_path / "tiny").glob("*.ckpt")) == ["last.ckpt"]
    weight = "adaptor.linear.weight"
    assert torch.equal(load_run(tmp_path / "tiny").adaptor.linear.weight, cli.model.adaptor.linear.weight)
    assert not torch.equal(last["state_dict"][weight], first[weight])
    assert [folder.name for folder in (tmp_path / "tiny" / "csv").iterdir()] == ["version_0"]
    assert (tmp_path / "tiny" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "tiny" / "predictions.jsonl").exists()


def test_an_overwriting_run_that_does_not_start_deletes_nothing(config: Path, tmp_path: Path, capsys) -> None:
    zoo("fit", "-c", config)
    before = files(tmp_path / "tiny")
    code, _ = say(capsys, "fit", "-c", config, "--overwrite=true", "--data.init_args.train=nowhere.jsonl")
    assert code == 1 and files(tmp_path / "tiny") == before
    code, error = say(capsys, "fit", "-c", config, "--overwrite=true", "--ckpt_path=last")
    assert code == 1 and "give one of them" in error and files(tmp_path / "tiny") == before


def test_a_run_goes_on_in_its_folder_by_keyword_folder_or_file(config: Path, tmp_path: Path) -> None:
    for steps, given in ((2, "last"), (4, "last"), (6, tmp_path / "tiny"), (8, tmp_path / "tiny" / "last.ckpt")):
        cli = zoo("fit", "-c", config, f"--vars.steps={steps}", f"--ckpt_path={given}")
        assert cli.trainer.global_step == saved(tmp_path / "tiny" / "last.ckpt")["global_step"] == steps
    assert sorted(file.name for file in (tmp_path / "tiny").glob("*.ckpt")) == ["last.ckpt"]
    fork = zoo("fit", "-c", config, "--name=fork", "--vars.steps=10", f"--ckpt_path={tmp_path / 'tiny'}")
    assert fork.trainer.global_step == 10 and saved(tmp_path / "tiny" / "last.ckpt")["global_step"] == 8


def test_checkpoints_elsewhere_are_those_of_one_run_too(config: Path, tmp_path: Path, capsys) -> None:
    last = tmp_path / "elsewhere" / "last.ckpt"
    apart = ["--trainer.callbacks=LastCheckpoint", f"--trainer.callbacks.dirpath={last.parent}"]
    apart += ["--trainer.callbacks+=StageCost"]
    zoo("fit", "-c", config, *apart)
    before = last.read_bytes()
    code, error = say(capsys, "fit", "-c", config, "--name=other", *apart)
    assert code == 1 and f"{tmp_path}/other holds a run ({last})" in error and last.read_bytes() == before
    assert (tmp_path / "tiny" / "summary.json").is_file()
    for steps, given in ((4, "last"), (6, last)):  # it goes on, though its folder holds a summary
        zoo("fit", "-c", config, *apart, f"--vars.steps={steps}", f"--ckpt_path={given}")
        assert saved(last)["global_step"] == steps
    zoo("fit", "-c", config, "--name=other", *apart, "--overwrite=true")
    assert saved(last)["global_step"] == 2


def test_a_continued_run_tells_of_settings_that_it_does_not_get(config: Path, tmp_path: Path) -> None:
    common, last = ["fit", "-c", str(config)], tmp_path / "tiny" / "last.ckpt"
    zoo(*common)
    with pytest.warns(UserWarning, match=r"model.optimizer is .*'lr': 0.5.*, but this run goes on with .*'lr': 0.001"):
        run([*common, "--vars.steps=4", "--ckpt_path=last", f"{LR}=0.5"])
    assert saved(last)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.001
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run([*common, "--vars.steps=6", "--ckpt_path=last", f"{LR}=0.5"])
        zoo("validate", "-c", config, f"{LR}=0.7")
    assert not [w for w in told if "goes on with that of the checkpoint" in str(w.message)]


def test_a_continued_run_tells_of_a_seed_that_it_does_not_get(config: Path) -> None:
    zoo("fit", "-c", config)
    with pytest.warns(UserWarning, match="seed_everything is 5, but .* the checkpoint, whose seed was 0"):
        run(["fit", "-c", str(config), "--vars.steps=4", "--ckpt_path=last", "--seed_everything=5"])


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (["--model.init_args.optimizer=torch.optim.SGD", f"{LR}=0.5"], "model.optimizer .* does not fit .*SGD"),
        (['--model.init_args.lr_scale={"adaptor": 0.1}'], "model.lr_scale .* does not fit"),
        (["--model.init_args.lr_scheduler=null"], "model.lr_scheduler .* does not fit None"),
        (["--model.init_args.adaptor.init_args.stack=2"], r"adaptor.linear.weight is \(32, 128\), the model's is"),
    ],
)
def test_what_the_state_of_a_run_does_not_fit_is_refused(config: Path, capsys, changed: list[str], told: str) -> None:
    """Lightning would fail inside torch, or go on with the rate that the old schedule ended with."""
    zoo("fit", "-c", config)
    code, line = say(capsys, "fit", "-c", config, "--vars.steps=4", "--ckpt_path=last", *changed)
    assert code == 1 and re.search(told, line) and "internal error" not in line


def test_averaged_weights_go_on_and_start_a_stage(config: Path, tmp_path: Path) -> None:
    """Lightning's callback saves them beside those of the last step, frozen ones and buffers too."""
    average = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging", "--trainer.callbacks.decay=0.5"]
    steady = ["--model.init_args.lr_scheduler=null", *average]
    zoo("fit", "-c", config, *steady)
    zoo("fit", "-c", config, *steady, "--vars.steps=4", "--ckpt_path=last")
    zoo("fit", "-c", config, *steady, "--vars.steps=4", "--name=unbroken")
    one, other = (saved(tmp_path / name / "last.ckpt") for name in ("tiny", "unbroken"))
    for kind in ("state_dict", "current_model_state"):
        assert all(value.equal(other[kind][name]) for name, value in one[kind].items())
    name = "adaptor.linear.weight"
    assert not one["state_dict"][name].equal(one["current_model_state"][name])
    zoo("fit", "-c", config, "--name=second", f"--model.init_args.init_from=['{tmp_path / 'tiny'}']", f"{LR}=0")
    assert saved(tmp_path / "second" / "last.ckpt")["state_dict"][name].equal(one["state_dict"][name])


def test_weights_alone_do_not_go_on(config: Path, tmp_path: Path, capsys) -> None:
    zoo("fit", "-c", config)
    held = saved(tmp_path / "tiny" / "last.ckpt")
    del held["optimizer_states"], held["lr_schedulers"]
    torch.save(held, tmp_path / "weights.ckpt")
    more = ["--vars.steps=4", f"--ckpt_path={tmp_path}/weights.ckpt"]
    code, error = say(capsys, "fit", "-c", config, "--name=more", *more)
    assert code == 1 and f"{tmp_path}/weights.ckpt: holds no optimizer state: it can be evaluated" in error


def test_sets_of_like_names_have_losses_of_their_own(config: Path, manifest: Path, tmp_path: Path) -> None:
    """`val/x/lm_loss` and `val/x_lm/loss` are two numbers."""
    lines = manifest.read_text().splitlines(keepends=True)
    sets = {"x": lines[:1], "x_lm": lines[1:]}
    for name, some in sets.items():
        manifest.with_name(f"{name}.jsonl").write_text("".join(some))
    zoo("fit", "-c", config)
    losses = {}
    for names in (["x", "x_lm"], ["x_lm"]):
        paths = ", ".join(f"{name}: {manifest.with_name(name)}.jsonl" for name in names)
        cli = zoo("validate", "-c", config, f"--data.init_args.val={{{paths}}}", "--trainer.limit_val_batches=1.0")
        losses[len(names)] = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert losses[2]["val/x_lm/loss"] == pytest.approx(losses[1]["val/loss"], abs=1e-6)
    assert losses[2]["val/x/lm_loss"] != pytest.approx(losses[1]["val/loss"], abs=1e-3)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--data.init_args.train=nowhere.jsonl"],
        ["--model.init_args.freeze=[nothing]"],
        ["--ckpt_path=no/such.ckpt"],
        ["--model.init_args.optimizer=torch.optim.SGD", f"{LR}=1e3", "--model.init_args.prompt.init_args.max_length=2"],
    ],
    ids=["data", "model", "checkpoint", "records"],
)
def test_a_run_that_does_not_start_leaves_nothing(config: Path, tmp_path: Path, capsys, wrong: list[str]) -> None:
    wandb = {"class_path": "WandbLogger", "init_args": {"save_dir": str(tmp_path / "tiny"), "mode": "offline"}}
    logger = f"--trainer.logger+={json.dumps(wandb)}"
    code, _ = say(capsys, "fit", "-c", config, logger, *wrong)
    assert code == 1 and not (tmp_path / "tiny").exists()


def test_a_run_without_a_step_leaves_nothing(config: Path, tmp_path: Path, capsys) -> None:
    """A finished run in another folder is no new run; in its own it is still finished."""
    cost = '--trainer.callbacks+={"class_path": "StageCost"}'
    zoo("fit", "-c", config, cost)
    finished = f"--ckpt_path={tmp_path / 'tiny'}"
    for more in ([finished], ["--vars.steps=0"]):
        code, line = say(capsys, "fit", "-c", config, "--name=new", cost, *more)
        assert code == 1 and "nothing was trained" in line and "model.init_from" in line
        assert not (tmp_path / "new").exists()
    zoo("fit", "-c", config, cost, finished)


def test_callbacks_go_with_what_they_show_or_log_by(config: Path, tmp_path: Path) -> None:
    """They refuse to be without; one of them asks for loggers before this package gives them out."""
    rates = '--trainer.callbacks+={"class_path": "LearningRateMonitor"}'
    device = '--trainer.callbacks+={"class_path": "DeviceStatsMonitor", "init_args": {"cpu_stats": false}}'
    zoo("fit", "-c", config, rates, device)
    bar = '--trainer.callbacks+={"class_path": "StageProgress"}'  # the bar itself is off in this config
    zoo("fit", "-c", config, rates, device, bar, "--name=silent", "--trainer.logger=false")
    assert (tmp_path / "tiny" / "csv").is_dir() and (tmp_path / "silent" / "last.ckpt").is_file()
    assert not (tmp_path / "silent" / "csv").exists()


def test_what_the_doctor_stops_leaves_nothing(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from speechzoo.callbacks import doctor
    from speechzoo.doctor import Finding

    monkeypatch.setattr(doctor, "errors", lambda findings: [Finding("error", "made up", "for this test")])
    code, _ = say(capsys, "fit", "-c", config)
    assert code == 1 and not (tmp_path / "tiny").exists()


def test_other_commands_take_the_weights_of_the_run_and_leave_no_logs(config: Path, tmp_path: Path, capsys) -> None:
    commands = ("validate", "test", "predict")
    for command in commands:
        code, error = say(capsys, command, "-c", config)
        assert code == 1 and "tiny/last.ckpt: no such checkpoint" in error and "--ckpt_path=untrained" in error
    assert not (tmp_path / "tiny").exists()
    fitted = zoo("fit", "-c", config, "--vars.steps=8", f"{LR}=0.05").model.adaptor.linear.weight
    before = set(files(tmp_path / "tiny"))
    for command in commands:
        assert torch.equal(zoo(command, "-c", config).model.adaptor.linear.weight, fitted)
    for given in ("last", tmp_path / "tiny"):
        assert torch.equal(zoo("validate", "-c", config, f"--ckpt_path={given}").model.adaptor.linear.weight, fitted)
    assert not torch.equal(zoo("validate", "-c", config, "--ckpt_path=untrained").model.adaptor.linear.weight, fitted)
    assert set(files(tmp_path / "tiny")) - before <= {"predictions.jsonl", "answers.jsonl"}
    code, error = say(capsys, "validate", "-c", config, "--ckpt_path=best")
    assert code == 1 and "best.ckpt: no such checkpoint" in error


def test_losses_are_those_of_the_trained_weights(config: Path, tmp_path: Path) -> None:
    zoo("fit", "-c", config, "--vars.steps=8", f"{LR}=0.05")
    trained, untrained = (
        float(zoo("validate", "-c", config, *given).trainer.callback_metrics["val/loss"])
        for given in ([], ["--ckpt_path=untrained"])
    )
    assert trained < untrained - 0.5


def test_two_at_once_do_not_share_a_folder(config: Path, tmp_path: Path, capsys) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent("""
            import sys
            from speechzoo.system.locks import claim
            claim(sys.argv[1], "speechzoo fit")
            print("held", flush=True)
            sys.stdin.read()
        """), tmp_path / "tiny"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    try:
        assert holder.stdout.readline() == "held\n"
        code, error = say(capsys, "fit", "-c", config)
        assert code == 1 and f"in use by process {holder.pid}" in error
        assert files(tmp_path / "tiny") == {}
    finally:
        holder.communicate()
    assert zoo("fit", "-c", config).trainer.global_step == 2
    claim(tmp_path / "tiny", "test").release()  # the run has let it go


def test_a_continued_run_is_the_same_run_in_wandb(config: Path, tmp_path: Path) -> None:
    text = yaml.safe_load(config.read_text())
    text["trainer"]["logger"].append(
        {"class_path": "WandbLogger", "init_args": {"save_dir": "${trainer.default_root_dir}", "mode": "offline"}}
    )
    config.write_text(yaml.safe_dump(text))
    ids = []
    for rest in (["--vars.steps=2"], ["--vars.steps=4", "--ckpt_path=last"], ["--name=fork", "--vars.steps=6",
                 f"--ckpt_path={tmp_path / 'tiny'}"]):  # fmt: skip
        logger = zoo("fit", "-c", config, *rest).trainer.loggers[1]
        ids.append(logger.experiment.id)
        logger.experiment.finish()
    assert ids[0] == ids[1] != ids[2]
    assert len(list((tmp_path / "tiny" / "wandb").glob("offline-run-*"))) == 2
    assert len(list((tmp_path / "fork" / "wandb").glob("offline-run-*"))) == 1


def test_the_examination_does_not_count_as_training(config: Path, tmp_path: Path) -> None:
    cli = zoo("fit", "-c", config)
    names = [type(callback).__name__ for callback in cli.trainer.callbacks]
    assert names[:3] == ["Doctor", "Preflight", "RunFolder"] and names[-1] == "LastCheckpoint"
    with (tmp_path / "tiny" / "csv" / "version_0" / "metrics.csv").open(newline="") as handle:
        assert [row["step"] for row in csv.DictReader(handle) if row["train/loss"]] == ["1"]
