"""One folder holds one run: who may write into it, from when on, and which weights are meant."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from tiny_runs import saved, write_config, zoo

from speechzoo.cli import main
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


def test_what_the_doctor_stops_leaves_nothing(config: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    from speechzoo.callbacks import doctor
    from speechzoo.doctor import Finding

    monkeypatch.setattr(doctor, "errors", lambda findings: [Finding("error", "made up", "for this test")])
    code, _ = say(capsys, "fit", "-c", config)
    assert code == 1 and not (tmp_path / "tiny").exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_commands_take_the_weights_of_the_run_and_leave_no_logs(
    config: Path, tmp_path: Path, capsys, command: str
) -> None:
    code, error = say(capsys, command, "-c", config)
    assert code == 1 and "tiny/last.ckpt: no such checkpoint" in error and "--ckpt_path=untrained" in error
    assert not (tmp_path / "tiny").exists()
    fitted = zoo("fit", "-c", config, "--vars.steps=8", f"{LR}=0.05").model.adaptor.linear.weight
    before = set(files(tmp_path / "tiny"))
    for given in ([], ["--ckpt_path=last"], [f"--ckpt_path={tmp_path / 'tiny'}"]):
        assert torch.equal(zoo(command, "-c", config, *given).model.adaptor.linear.weight, fitted)
    assert not torch.equal(zoo(command, "-c", config, "--ckpt_path=untrained").model.adaptor.linear.weight, fitted)
    assert set(files(tmp_path / "tiny")) - before <= {"predictions.jsonl", "answers.jsonl"}
    code, error = say(capsys, command, "-c", config, "--ckpt_path=best")
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
