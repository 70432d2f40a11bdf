"""Run folders as `speechzoo fit` leaves them, with the numbers that a test wants."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from speechzoo.evaluation import Answer, save_answers


def make_run(
    folder: Path,
    model: str = "LLaSM",
    lr: float = 0.1,
    seed: int = 0,
    val_loss: float | None = 1.0,
    tokens: int = 1000,
    right: int | None = None,
    data: str = "train.jsonl",
    commit: str | None = "334b92f0c1",
    steps: int = 10,
    examples: int = 80,
    asked: int = 4,
    **options: object,
) -> Path:
    """A run folder as `speechzoo fit` leaves it; the first `right` of `asked` questions are answered exactly."""
    folder.mkdir(parents=True)
    init = {"optimizer": {"class_path": "AdamW", "init_args": {"lr": lr}}, "llm": {"init_args": {"model": "llm"}}}
    config = {
        "seed_everything": seed,
        "name": folder.name,
        "doctor": {"rows": 4 + seed},  # decides nothing about the run
        "model": {"class_path": f"speechzoo.models.{model}", "init_args": {**init, **options}},
        "data": {"init_args": {"train": data, "val": "val.jsonl", "seed": seed, "feature_cache": str(folder)}},
        "trainer": {"default_root_dir": str(folder), "max_steps": 10, "logger": [{"class_path": "CSVLogger"}]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    metrics = folder / "csv" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("epoch,step,train/loss,val/loss\n0,4,3.0,\n0,4,,2.5\n0,9,1.5,\n0,9,,2.0\n")
    if val_loss is not None:
        summary = {
            "seconds": 60.0,
            "steps": steps,
            "examples": examples,
            "tokens": tokens,
            "trainable_parameters": 12_000,
        }
        summary |= {"total_parameters": 2_000_000, "peak_memory_mb": 512.0, "train_loss": 0.5, "val_loss": val_loss}
        summary["commit"] = commit
        (folder / "summary.json").write_text(json.dumps(summary))
    if right is not None:
        save_answers(folder / "answers.jsonl", quiz(right, asked))
    return folder


def quiz(right: int, asked: int = 4) -> list[Answer]:
    """Answers to so many questions, the first `right` of them exactly right."""
    return [
        Answer(f"q{i}", "sum", f"question {i}", f"answer {i}", f"answer {i}" if i < right else "no idea")
        for i in range(asked)
    ]
