"""A sweep of two trials through real processes with tiny random models, one on two ranks, and its comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tiny_runs import write_config

from speechzoo.cli.compare import main as compare
from speechzoo.cli.sweep import main as sweep


@pytest.mark.slow
def test_two_trials_and_their_comparison(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path, monkeypatch, capsys
) -> None:
    config = write_config(tmp_path / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)
    content = yaml.safe_load(config.read_text())
    wandb = {"project": "tests", "group": "LLaSM", "save_dir": "${trainer.default_root_dir}", "mode": "offline"}
    content["trainer"]["logger"].append({"class_path": "WandbLogger", "init_args": wandb})
    content["trainer"]["val_check_interval"] = 1
    content["trainer"]["callbacks"].append({"class_path": "StageCost"})
    config.write_text(yaml.safe_dump(content))
    file = tmp_path / "tiny_sweep.yaml"
    file.write_text(
        yaml.safe_dump(
            {
                "method": "grid",
                "metric": {"name": "val/loss"},
                "parameters": {"trainer.devices": {"values": [1, 2]}},
                "command": ["${interpreter}", "-m", "speechzoo", "fit", f"--config={config}", "${args}"],
            }
        )
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    out = tmp_path / "out"
    assert sweep([str(file), "--out", str(out)]) == 0, (out / "sweep.json").read_text()

    trials = json.loads((out / "sweep.json").read_text())["trials"]
    assert [trial["state"] for trial in trials] == ["finished", "finished"]
    assert all(trial["metric"] > 0 and trial["tags"] == ["LLaSM", "Linear"] for trial in trials)
    for number in range(2):
        folder = out / f"trial_{number:03d}"
        assert (folder / "last.ckpt").is_file() and (folder / "summary.json").is_file()
        assert len(list((folder / "wandb").glob("offline-run-*"))) == 1  # the second rank starts none
        logger = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"][-1]["init_args"]
        assert logger["group"] == "tiny_sweep" and logger["tags"] == ["LLaSM", "Linear"]

    assert compare([str(out)]) == 0
    text = (out / "comparison" / "comparison.md").read_text()
    assert "| LLaSM | 1 | 0 |" in text and "| LLaSM | 2 | 0 |" in text
    assert "conversations trained on differ" in text  # two ranks read twice as many in as many steps
