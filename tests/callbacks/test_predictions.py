"""Answers never replace the manifest that they answer."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from speechzoo.callbacks import AnswerWriter


@pytest.mark.parametrize("name", ["predictions.jsonl", "link.jsonl"])
def test_the_questions_are_not_written_over(name: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.jsonl").write_text("questions")
    if name == "link.jsonl":
        (tmp_path / name).hardlink_to(tmp_path / "predictions.jsonl")
    records = {"predict": {"predict": SimpleNamespace(sources=[str(tmp_path / name)])}}
    trainer = SimpleNamespace(
        default_root_dir=str(tmp_path), world_size=1, global_rank=0, datamodule=SimpleNamespace(records=records)
    )
    with pytest.raises(ValueError, match="is also an input"):
        AnswerWriter().setup(trainer, None, "predict")
    AnswerWriter().setup(trainer, None, "fit")
    AnswerWriter("other.jsonl").setup(trainer, None, "predict")
    assert (tmp_path / "predictions.jsonl").read_text() == "questions"
