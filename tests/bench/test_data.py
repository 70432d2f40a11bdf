"""The padding of training batches stays small, on all ranks, and the measurement says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from speechzoo.bench.data import _settings, librispeech_like, padding, positions_of
from speechzoo.cli.bench import main
from speechzoo.text import ChatPrompt


@pytest.fixture(scope="module")
def lengths() -> np.ndarray:
    return positions_of(librispeech_like(30_000))


def test_the_distribution(lengths: np.ndarray) -> None:
    seconds = librispeech_like(30_000)
    assert seconds.mean() == pytest.approx(12.3, abs=0.1) and seconds.max() <= 35
    counts, edges = np.histogram(seconds, bins=np.arange(1, 36))
    assert edges[counts.argmax()] in (14, 15)


@pytest.mark.parametrize("ranks", [1, 2, 8])
@pytest.mark.parametrize("budget", [4096, 16384])
def test_padding_of_training_batches(lengths: np.ndarray, ranks: int, budget: int) -> None:
    found = padding(lengths, 1000, budget, ranks)
    assert found["waste"] < 0.05
    assert found["idle"] < 0.01
    assert found["least"] > 0.75  # no step in which one rank has far less to do


@pytest.mark.parametrize("ranks", [1, 2, 8])
def test_padding_of_a_small_corpus(ranks: int) -> None:
    """As many records as the quickstart's question corpus, of lengths like there (46 to 73 positions)."""
    lengths = np.random.default_rng(0).normal(56.5, 4.5, 660).clip(46, 73).astype(int)
    assert padding(lengths, 1000, 1024, ranks)["waste"] < 0.05
    assert padding(lengths, 8, None, ranks)["waste"] < 0.05


def test_padding_counts() -> None:
    """One batch of four on one rank; one record on each of two ranks, of which the shorter waits for the longer."""
    assert padding([4, 4, 6, 8], 4, None, 1) == {"steps": 1, "waste": 1 - 22 / 32, "idle": 0.0, "least": 1.0}
    assert padding([10, 10], 1, None, 2) == {"steps": 1, "waste": 0.0, "idle": 0.0, "least": 1.0}
    assert padding([6, 8], 1, None, 2) == {"steps": 1, "waste": 0.0, "idle": 1 - 14 / 16, "least": 6 / 8}


def test_command(tmp_path: Path, manifest: Path, tiny_tokenizer_dir: Path, capsys) -> None:
    pytest.importorskip("datasets")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"data: {{init_args: {{train: {manifest}, batch_size: 2}}}}\n"
        f"model: {{init_args: {{prompt: {{init_args: {{tokenizer: {tiny_tokenizer_dir}}}}}}}}}\n"
    )
    (tmp_path / "again").symlink_to(manifest.parent)
    other = tmp_path / "again" / manifest.name  # of the same name and size
    options = [
        "--records",
        "6",
        "--workers",
        "1",
        "--manifest",
        str(manifest),
        "--manifest",
        str(other),
        "--config",
        str(recipe),
    ]
    assert main(["data", *options, "--json", str(tmp_path / "out.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["sources"]) >= {"jsonl", "tar", "parquet, groups of 10", "hf (Arrow)"}
    assert all(row["CPU s/1000, 1 workers"] > 0 for row in found["sources"].values())
    assert found["padding"]["recipe.yaml, 6 records"]["1"]["steps"] == 3
    assert {f"{manifest}, 6 records", f"{other}, 6 records"} <= set(found["padding"])
    assert "LibriSpeech-like" in capsys.readouterr().out


def test_a_recipe_is_read_with_its_own_class_of_prompt(tmp_path: Path, manifest: Path, tiny_tokenizer_dir: Path):
    for name, kind in (("ChatPrompt", ChatPrompt), (f"{__name__}.Longer", Longer)):
        prompt = {"class_path": name, "init_args": {"tokenizer": str(tiny_tokenizer_dir)}}
        model = {"init_args": {"prompt": prompt}}
        (tmp_path / "recipe.yaml").write_text(json.dumps({"data": {"train": str(manifest)}, "model": model}))
        assert type(_settings(tmp_path / "recipe.yaml")[1]) is kind


class Longer(ChatPrompt):
    """Somebody's own."""
