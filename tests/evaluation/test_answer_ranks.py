"""Two processes count and answer as one does: infeasible targets, the files of `predict`, its scores."""

from __future__ import annotations

import json
import warnings
from datetime import timedelta
from pathlib import Path

import pytest
import rank_cases
import torch.distributed
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from rank_cases import assistant, be_rank, fit, make, tone, user
from together import run_together

from speechzoo.callbacks import AnswerWriter
from speechzoo.data import SpeechDataModule
from speechzoo.evaluation import load_answers
from speechzoo.evaluation.answer_scores import AnswerScores

WRONG = [1, 2, 999]  # no unit of the decoder's
# Infeasible: one in the first process's half, two in the second's; then a first process without any units.
STEPS = [
    [
        [user(tone(0.4, 200)), assistant("no", [1])],
        [user(tone(0.4, 300)), assistant("no", WRONG)],
        [user(tone(0.5, 300)), assistant("no", WRONG)],
        [user(tone(0.6, 150)), assistant("no", WRONG)],
    ]
]
SILENT = [[[user("a"), assistant("b")], [user("c"), assistant("d")], *STEPS[0][2:]]]


def count(steps: list, strategy: str, world: int, rank: int, llm: Path, whisper: Path) -> float:
    rank_cases.STEPS = steps * 3
    trainer, _ = fit(make("omni_joint", llm, whisper), strategy, world, rank, 1, max_steps=1)
    return float(trainer.callback_metrics["train/infeasible_units_step"])


def predict(llm: Path, whisper: Path, manifest: Path, out: Path, world: int) -> None:
    options = {}
    if world > 1:
        options["plugins"] = [LightningEnvironment()]
        options["strategy"] = DDPStrategy(process_group_backend="gloo", timeout=timedelta(seconds=60))
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=out,
        callbacks=[AnswerWriter(), AnswerScores()],
        **options,
    )
    model = make("omni_joint", llm, whisper, generation={"max_new_tokens": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.predict(model, datamodule=SpeechDataModule(predict=str(manifest), batch_size=2))


def two(rank: int, port: int, llm: Path, whisper: Path, manifest: Path, out: Path) -> None:
    be_rank(rank, port)
    counts = [count(steps, "ddp", 2, rank, llm, whisper) for steps in (STEPS, SILENT)]
    (out / f"counts_{rank}.json").write_text(json.dumps(counts))
    predict(llm, whisper, manifest, out / "two", 2)
    torch.distributed.destroy_process_group()


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Five, so that two processes need a filler."""
    rows = [{"id": f"q{i}", "messages": [user(f"Question {i}?"), assistant(f"{i}", [i])]} for i in range(5)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_two_processes_count_and_answer_as_one(
    tmp_path: Path, tiny_llm_dir: Path, tiny_whisper_pt: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_cases, "STEPS", rank_cases.STEPS)  # as it was, afterwards
    run_together(two, (find_free_network_port(), tiny_llm_dir, tiny_whisper_pt, questions, tmp_path))
    for rank in range(2):
        assert json.loads((tmp_path / f"counts_{rank}.json").read_text()) == [3, 2]
    assert count(STEPS, "one", 1, 0, tiny_llm_dir, tiny_whisper_pt) == 3

    predict(tiny_llm_dir, tiny_whisper_pt, questions, tmp_path / "one", 1)
    for name in ("one", "two"):
        assert sorted(path.name for path in (tmp_path / name).glob("*.jsonl")) == ["answers.jsonl", "predictions.jsonl"]
    one, other = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("one", "two"))
    assert one == other and [json.loads(line)["id"] for line in one.splitlines()] == [f"q{i}" for i in range(5)]
    left, right = (load_answers(tmp_path / name / "answers.jsonl") for name in ("one", "two"))
    assert [(a.id, a.text, a.reference, a.units) for a in left] == [(a.id, a.text, a.reference, a.units) for a in right]
    assert len(left) == 5
