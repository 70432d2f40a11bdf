"""Wrong keys, values and files of a configuration are named, with what was meant."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import write_config, zoo

from speechzoo.cli import main
from speechzoo.system.yaml_text import read_yaml


@pytest.fixture
def config(tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


@pytest.mark.parametrize(
    ("argument", "named", "meant"),
    [
        ("--modle=LLaSM", "modle", "model"),
        ("--trainer.max_stepz=3", "trainer.max_stepz", "trainer.max_steps"),
        ("--trainer.max_step=3", "trainer.max_step", "trainer.max_steps"),  # never taken for max_steps
        ("--model.adaptor.stak=3", "stak", "stack"),
        ("--model.init_args.adaptor.init_args.stak=3", "stak", "stack"),
        ("--model.init_args.freez=[]", "freez", "freeze"),
        ("--data.init_args.batchsize=3", "batchsize", "batch_size"),
        ("--model.adaptor=Cnov", "Cnov", "Conv"),
        ("--model=LLaSm", "LLaSm", "LLaSM"),
    ],
)
def test_a_wrong_key_is_named_with_its_nearest_spelling(config: Path, capsys, argument, named, meant) -> None:
    with pytest.raises(SystemExit) as stopped:
        zoo("fit", "-c", config, argument)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert f"did you mean {meant!r} instead of {named!r}?" in text
    assert "usage:" not in text and len(text) < 2000


@pytest.mark.parametrize(
    ("right", "wrong", "meant"),
    [
        ("{stack:", "{stak:", "stack"),
        ("batch_size:", "batchsize:", "batch_size"),
        ("  max_steps:", "  max_stepz:", "trainer.max_steps"),
        ("    adaptor:", "    adoptor:", "adaptor"),
        ("name: tiny", "nmae: tiny", "name"),
    ],
)
def test_a_wrong_key_in_a_file_is_named(config: Path, capsys, right, wrong, meant) -> None:
    assert right in config.read_text()
    config.write_text(config.read_text().replace(right, wrong))
    with pytest.raises(SystemExit) as stopped:
        zoo("fit", "-c", config)
    assert stopped.value.code == 2
    text = capsys.readouterr().err
    assert f"did you mean {meant!r} instead of" in text and len(text) < 2500


def test_a_wrong_value_and_a_missing_file_are_named(config: Path, capsys) -> None:
    for argument, expected in (("--trainer.max_steps=two", "trainer.max_steps"), ("--config=nope.yaml", "nope.yaml")):
        with pytest.raises(SystemExit) as stopped:
            zoo("fit", "-c", config, argument)
        assert stopped.value.code == 2
        assert expected in capsys.readouterr().err


def test_a_file_that_says_two_things_is_refused(config: Path, capsys) -> None:
    """The last of two keys would win, and the first be ignored."""
    text = config.read_text() + "name: another\n"
    config.write_text(text)
    assert main(["fit", "-c", str(config)]) == 2
    line = len(text.splitlines())
    assert f"tiny.yaml:{line}: not YAML (the key 'name' stands twice)" in capsys.readouterr().err
    config.write_text("a: &a {x: 1}\nb: {<<: *a, x: 2}\n")  # what a merge brings in may be replaced
    assert read_yaml(config) == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: x\ntrainer:\n#  devices: 8\n", "trainer is empty, which would take out all that is set there"),
        ("name: x\ndata:\n  init_args:\n", "data.init_args is empty"),
        (
            "trainer:\n  callbacks+:\n  - class_path: StageCost\n    init_args:\n",
            "trainer.callbacks+.0.init_args is empty",
        ),
        ("# all of it\n", "holds nothing, not the settings of a run"),
    ],
)
def test_an_overlay_whose_lines_are_commented_out_is_refused(config: Path, tmp_path: Path, capsys, text, told) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    assert main(["fit", "-c", str(config), "-c", str(tmp_path / "mine.yaml")]) == 2
    assert f"--config {tmp_path}/mine.yaml: {told}" in capsys.readouterr().err


def test_a_default_that_yaml_cannot_hold_is_named_before_training(config: Path) -> None:
    with pytest.raises(ValueError, match="default of device: give device=cpu"):
        zoo("fit", "-c", config, "--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1")


@pytest.mark.parametrize("strategy", [["=ddp_spawn"], ["=DDPStrategy", ".start_method=spawn"]], ids=["name", "class"])
def test_processes_that_cannot_be_started_are_refused_by_name(config: Path, capsys, strategy: list[str]) -> None:
    words = [f"--trainer.strategy{word}" for word in strategy]
    assert main(["fit", "-c", str(config), "--trainer.devices=2", *words]) == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("by ddp_spawn here: give ddp, or fsdp2")


def test_errors_of_the_zoo_are_one_line_and_an_exit_code(config: Path, tmp_path: Path, capsys) -> None:
    assert main(["fit", "-c", str(config), f"--data.init_args.train={tmp_path}/none.jsonl"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    wanted = "no such manifest (JSONL, Parquet or tar shards, or hf:NAME:SPLIT)"
    assert error == f"speechzoo: data.train: {tmp_path}/none.jsonl: {wanted}"
    assert main(["fit", "-c", str(config), "--model.init_args.freeze=[^encodr]"]) == 1
    assert "freeze pattern '^encodr' matches no parameter" in capsys.readouterr().err
