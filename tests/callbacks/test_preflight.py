"""The largest batch is tried first, and leaves no trace (`doctor/test_faults.py` compares whole runs)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import write_config, zoo

from speechzoo.callbacks.preflight import moments
from speechzoo.doctor.batches import TrainingData


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_llm_dir: Path, tiny_whisper_pt: Path, manifest: Path) -> Path:
    return write_config(tmp_path_factory.mktemp("preflight") / "tiny.yaml", tiny_llm_dir, tiny_whisper_pt, manifest)


def test_it_says_how_much_is_left(config: Path, capsys, caplog) -> None:
    import logging

    with caplog.at_level(logging.INFO):
        cli = zoo("fit", "-c", config, "--preflight.enabled=true", "--data.init_args.batch_size=4")
    data = TrainingData.of(cli.trainer)
    numbers = data.largest()
    lengths = data.dataset.lengths
    size = max(len(batch) * max(lengths[i] for i in batch) for _ in range(8) for batch in data.sampler)
    assert len(numbers) * max(lengths[i] for i in numbers) >= size
    assert f"the largest batch, {len(numbers)} x {max(lengths[i] for i in numbers)} positions: peak" in caplog.text
    assert "GB left" in caplog.text and "of it the optimizer's" in caplog.text
    assert moments(cli.trainer) == 0  # the optimizer has them by now
    learning = sum(p.numel() for p in cli.model.parameters() if p.requires_grad)
    cli.trainer.optimizers[0].state.clear()
    assert moments(cli.trainer) == 8 * learning


def test_a_batch_that_does_not_fit_is_one_clear_error(config: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("speechzoo.callbacks.preflight.there_and_back", full)
    with pytest.raises(
        ValueError, match=r"the largest batch, \d+ x \d+ positions, does not fit.*lower data.max_tokens"
    ):
        zoo("fit", "-c", config, "--preflight.enabled=true", "--name=full")
    zoo("fit", "-c", config, "--name=off")  # off by default without a GPU
