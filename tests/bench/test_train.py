"""What the training bench compares: the same loss with and without caches, on conversations of the stated lengths."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from tiny_runs import num_targets

from speechzoo.adaptors import ConcatMLP
from speechzoo.bench import train
from speechzoo.cli.bench import main
from speechzoo.encoders import WhisperEncoder
from speechzoo.llms import HFCausalLM
from speechzoo.models import LLaMAOmni
from speechzoo.text import ChatPrompt
from speechzoo.types import AUDIO
from speechzoo.units import CTCUnitDecoder


@pytest.fixture
def model(tiny_llm_dir: Path, tiny_whisper_pt: Path, monkeypatch: pytest.MonkeyPatch) -> LLaMAOmni:
    monkeypatch.setattr(train, "VOCAB", 400)
    made = LLaMAOmni(
        encoder=partial(WhisperEncoder, model=str(tiny_whisper_pt)),
        adaptor=partial(ConcatMLP, stack=5, hidden_dim=24),
        llm=partial(HFCausalLM, model=str(tiny_llm_dir)),
        prompt=partial(ChatPrompt, tokenizer=str(tiny_llm_dir)),
        unit_decoder=partial(CTCUnitDecoder, dim=16, num_layers=1, num_heads=2, ffn_dim=32),
    )
    made.configure_model()
    return made


def test_conversations_are_as_long_as_the_official_ones(model) -> None:
    batch = train.conversations()
    prompt = int(((batch.turns == 0) & (batch.input_ids != AUDIO)).sum()) // 2
    assert prompt + model.audio_positions(batch.audio_lens)[0] == 362
    assert num_targets(batch) == {"lm": 2 * 52, "ctc": 2 * 553}
    assert (batch.units[:, 1:] != batch.units[:, :-1]).all() and int(batch.units.max()) < 1000


def test_caches_change_the_cost_and_not_the_loss(model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short clips and answers, so that the test is fast; parts may run only where nothing stands in for them."""
    monkeypatch.setattr(train, "ANSWER", 6)
    monkeypatch.setattr(train, "UNITS", 40)
    ran: list[str] = []
    for name in ("encoder", "llm", "unit_decoder"):
        getattr(model, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    losses, parts = {}, {}
    arms = ("stage1_trimmed_no_cache", "stage1_trimmed", "stage2_no_cache", "stage2_features", "stage2", "stage2_bf16")
    for arm in arms:
        train.stage(model, arm)
        model.encoder.window = "trimmed"
        batch = train.cached(model, train.conversations(0.5, rows=1), arm)
        ran.clear()
        losses[arm] = train.step(model, batch, arm)
        parts[arm] = list(ran)
        learns = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
        assert learns == ({"adaptor", "llm"} if arm.startswith("stage1") else {"unit_decoder"})
    assert parts == {
        "stage1_trimmed_no_cache": ["encoder", "llm"],
        "stage1_trimmed": ["llm"],
        "stage2_no_cache": ["encoder", "llm", "unit_decoder"],
        "stage2_features": ["llm", "unit_decoder"],
        "stage2": ["unit_decoder"],
        "stage2_bf16": ["unit_decoder"],
    }
    assert losses["stage1_trimmed"] == pytest.approx(losses["stage1_trimmed_no_cache"], rel=1e-6)
    assert losses["stage2"] == pytest.approx(losses["stage2_no_cache"], rel=1e-6)
    assert (
        losses["stage2_bf16"] == pytest.approx(losses["stage2"], rel=1e-2) and losses["stage2_bf16"] != losses["stage2"]
    )
    assert losses["stage2_features"] == pytest.approx(losses["stage2_no_cache"], rel=1e-6)


def test_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The command runs each arm in a process of its own; here one that answers at once."""
    took = {"stage1": 3.73, "stage1_no_cache": 7.46, "stage1_official_work": 14.92}

    class Pool:
        def __init__(self, *_) -> None: ...
        def __enter__(self):
            return self

        def __exit__(self, *_) -> None: ...
        def submit(self, run, arm, repeats, threads):
            assert run is train.measure and (repeats, threads) == (5, torch.get_num_threads())
            self.result = lambda: {"cpu_seconds": took[arm], "loss": 2.0 + took[arm] * 1e-6, "peak_memory_mb": 9.6}
            return self

    monkeypatch.setattr(train, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(train, "calibration", lambda threads: 50.0)
    file = tmp_path / "figures.json"
    assert main(["train", "--arms", *took, "--repeats", "5", "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["stage1_cpu_seconds"] == 3.73 and figures["stage1_over_official"] == 0.5
    assert figures["stage1_over_official_work"] == 0.25 and figures["stage1_peak_memory_mb"] == 10
    assert figures["stage1_loss_change_by_cache"] == pytest.approx(1.865e-6, rel=1e-3)
    assert figures["calibration_gflop_per_cpu_second"] == 50.0 and figures["cores"] >= 1
    printed = capsys.readouterr().out
    assert "3.73 CPU s a step    0.500 x official (7.46)" in printed and "whose speed is not known" in printed


def test_cpu_seconds_is_the_least_and_leaves_the_first_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 23.0])
    monkeypatch.setattr(train.time, "process_time", lambda: next(clock))
    runs: list[int] = []
    assert train.cpu_seconds(lambda: runs.append(1), 3) == 2.0
    assert len(runs) == 4
