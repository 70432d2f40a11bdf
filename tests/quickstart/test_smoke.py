"""The whole quickstart at the smoke scale with the real parts: killed while training, started again, and repeated."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from speechzoo.evaluation.answers import load_answers, score
from speechzoo.names.published import entry
from speechzoo.quickstart.examination import SYSTEMS
from speechzoo.quickstart.listening import read_facts
from speechzoo.quickstart.pipeline import Quickstart
from speechzoo.quickstart.scale import ASKED, DEFAULT, LANES, PUBLISHED, STAGES
from speechzoo.units import KMeansUnits

# Of the person who runs the tests; the fixture `own_cache` would fetch 240 MB into a temporary folder.
CACHE = os.environ.get("SPEECHZOO_CACHE")
KILLED = LANES[0][1]


def start(out: Path, log: Path) -> subprocess.Popen:
    env = {name: value for name, value in os.environ.items() if name not in ("SPEECHZOO_CACHE", "WANDB_MODE")}
    env |= {"SPEECHZOO_CACHE": CACHE} if CACHE else {}
    command = [sys.executable, "-m", "speechzoo", "quickstart", "--smoke", f"--out={out}"]
    with log.open("a") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)


def finish(out: Path, log: Path, seconds: float = 900) -> float:
    began = time.monotonic()
    process = start(out, log)
    try:
        assert process.wait(timeout=seconds) == 0, log.read_text()[-3000:]
    finally:
        process.kill()
    return time.monotonic() - began


def written(out: Path) -> dict[Path, int]:
    """When each file of the run was last written, without the logs of W&B's service, which outlives the run."""
    return {
        path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "debug-core.log"
    }


@pytest.mark.real
def test_smoke_run(tmp_path: Path) -> None:
    out, log = tmp_path / "run", tmp_path / "log.txt"
    process = start(out, log)
    try:
        for _ in range(6000):  # until the second training stage has its config: its steps come next
            if (out / KILLED / "config.yaml").is_file():
                break
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.1)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    state = out / "state"
    assert not (state / f"{KILLED}.done").exists()
    before = {path.name: path.stat().st_mtime_ns for path in state.glob("*.done")}
    assert {f"{name}.done" for name in ("parts", "corpus", "units", LANES[0][0])} <= set(before)

    finish(out, log)
    assert {name: (state / name).stat().st_mtime_ns for name in before} == before
    stages = {"parts", "corpus", "units", *STAGES, *ASKED, "speech", "report"}
    assert {path.stem for path in state.glob("*.done")} == stages

    for name in ("llasm_pretrain", "llama_omni_warmup"):
        copied = (out / "answers" / f"copy_{name}_questions.jsonl").read_text().splitlines()
        assert len(copied) == 19
        assert (out / "answers" / f"copy_{name}_everyday.jsonl").is_file() == bool(
            (out / "corpus" / "hearing_test.jsonl").read_text()
        )

    html, text = (out / "report.html").read_text(), (out / "report.md").read_text()
    for system in SYSTEMS:
        assert system.name in html and system.name in text
        assert len((out / "answers" / f"{system.key}.jsonl").read_text().splitlines()) == 19
    assert html.count("data:audio/") >= 1 and html.count("data:image/") >= 1
    assert (out / "vocoder" / "model.safetensors").is_file()
    facts = read_facts(out)
    assert facts["streamed_minus_whole"] < 1e-4
    spoken = [json.loads(line) for line in (out / "answers" / "llama_omni.jsonl").read_text().splitlines()]
    assert sum(row["spoken"] is not None for row in spoken) == facts["answers"] == 4
    for name in STAGES:
        assert (out / name / "last.ckpt").is_file() and (out / name / "config.yaml").is_file()
        if name != "vocoder":  # StageCost counts conversations
            assert json.loads((out / name / "summary.json").read_text())
        assert list((out / name / "wandb").glob("offline-run-*/*.wandb"))
    assert list((out / "wandb").glob("offline-run-*/*.wandb"))

    kept = written(out)
    assert finish(out, log, 120) < 60
    assert written(out) == kept


@pytest.mark.real
def test_started_from_the_zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The main job with few steps: adaptors, units and vocoder are the published ones, and the report says so."""
    if CACHE:
        monkeypatch.setenv("SPEECHZOO_CACHE", CACHE)
    else:
        monkeypatch.delenv("SPEECHZOO_CACHE")
    few = ["--trainer.max_steps=3", "--trainer.val_check_interval=3", "--trainer.limit_val_batches=2"]
    sizes = {"train_pairs": 24, "test_pairs": 19, "spoken": 4}
    scale = replace(DEFAULT, **sizes, overrides=dict.fromkeys(STAGES, few))
    out = tmp_path / "run"
    Quickstart(out, scale, 0, Console()).run()
    assert not any((out / name).exists() for name in PUBLISHED)
    assert KMeansUnits.load(out / "corpus/kmeans.safetensors").num_units == 200
    config = yaml.safe_load((out / "llasm_finetune/config.yaml").read_text())
    assert config["model"]["init_args"]["init_from"] == ["llasm-tiny-asr"]
    copied = load_answers(out / "answers/copy_llasm_pretrain_questions.jsonl")
    assert score(copied)["wer"].value < 0.2  # it hears without a step of training here
    text = (out / "report.md").read_text()
    assert "Taken from the zoo, not trained here: llasm-tiny-asr" in text
    stages = entry("llasm-tiny-asr")["training"]
    assert len(stages) > 1 and all(f"llasm-tiny-asr, {stage}" in text.replace("\\", "") for stage in stages)
