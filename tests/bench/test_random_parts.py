"""`speechzoo bench parts`: random parts that the real recipes train and that answer with sound."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from tiny_runs import num_targets, zoo

import speechzoo
from speechzoo.bench.sizes import SIZES
from speechzoo.cli import bench
from speechzoo.cli.bench import main
from speechzoo.data import encode_batch, read_manifest
from speechzoo.talk.sources import open_talker
from speechzoo.types import AudioChunk, StreamEnd

RECIPES = Path(__file__).resolve().parents[2] / "recipes" / "llama_omni"


@pytest.fixture(scope="module")
def parts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("parts") / "tiny"
    assert main(["parts", str(folder), "--size=tiny", "--records=4", "--device=cpu"]) == 0
    return folder


def test_the_command_knows_the_sizes() -> None:
    """Its help imports nothing heavy, and so has their names by itself."""
    assert tuple(SIZES) == bench.SIZES


def test_questions_and_answers_are_as_long_as_the_papers(parts: Path) -> None:
    model = speechzoo.load(parts)
    records = [json.loads(line) for line in (parts / "train.jsonl").read_text().splitlines()]
    batch = encode_batch(model.prompt, [record.messages for record in read_manifest(parts / "train.jsonl")], True)
    assert batch.audio_lens.tolist() == [7.5 * 16_000] * 4
    assert num_targets(batch) == {"lm": 4 * 51, "ctc": 4 * 553}  # 50 tokens and the end
    for record in records:
        units = record["messages"][1]["units"]
        assert all(a != b for a, b in zip(units, units[1:], strict=False)) and 0 <= min(units) <= max(units) < 1000
    assert not list(parts.parent.glob("tmp*"))  # what it was made from


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_the_papers_recipes_train_them(parts: Path, stage: str, tmp_path: Path) -> None:
    cpu = ["--trainer.accelerator=cpu", "--trainer.max_steps=2", "--data.init_args.batch_size=2"]
    if stage == "stage2":
        cpu.append(f"--data.init_args.state_cache={tmp_path / 'states'}")
    recipe = RECIPES / f"{stage}.yaml"
    zoo("fit", "-c", recipe, "-c", parts / "overlay.yaml", *cpu, f"--trainer.default_root_dir={tmp_path}")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["steps"] == 2 and summary["examples"] == 4 and summary["peak_memory_mb"] > 0
    with (tmp_path / "csv" / "version_0" / "metrics.csv").open() as file:
        assert any(row.get("train/tokens_per_second") for row in csv.DictReader(file))


def test_they_answer_with_sound(parts: Path) -> None:
    talker = open_talker(str(parts), device="cpu")  # the vocoder inside is found
    torch.manual_seed(0)
    message = read_manifest(parts / "train.jsonl")[0].messages[:1]
    events = list(talker.stream(message, chunk_units=5, max_new_tokens=12))
    assert any(isinstance(event, AudioChunk) for event in events)
    end = next(event for event in events if isinstance(event, StreamEnd))
    assert len(end.units) > 5 and end.audio_seconds == pytest.approx(len(end.units) * 2 / 50)


def test_sizes_are_the_papers() -> None:
    """Llama-3.1-8B has 8,030,261,248 parameters, the released unit decoder 425,649,129."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from speechzoo.units import CTCUnitDecoder

    with torch.device("meta"):
        llm = LlamaForCausalLM(LlamaConfig(**SIZES["8b"].llm))
        small = LlamaForCausalLM(LlamaConfig(**SIZES["1b"].llm))
        decoder = CTCUnitDecoder(4096, num_units=1000, **SIZES["8b"].decoder)
    assert sum(p.numel() for p in llm.parameters()) == 8_030_261_248
    assert sum(p.numel() for p in small.parameters()) == 1_235_814_400
    assert sum(p.numel() for p in decoder.parameters()) == 425_649_129


def test_what_is_there_is_left_alone(parts: Path, capsys) -> None:
    before = (parts / "config.json").read_bytes()
    assert main(["parts", str(parts), "--size=tiny", "--records=4"]) == 1
    assert "exists already" in capsys.readouterr().err
    assert (parts / "config.json").read_bytes() == before
