"""`speechzoo bench stream`: all arms speak the same units, and the figures are there."""

from __future__ import annotations

import json

import pytest
import torch

from speechzoo.bench.sizes import SIZES, noise_question, random_model
from speechzoo.bench.stream import decoder_arms, measure
from speechzoo.cli import bench as command


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return random_model(tmp_path_factory.mktemp("midsize"), SIZES["mid"])


@pytest.mark.slow
@torch.no_grad()
def test_the_arms_agree_and_their_figures_follow_from_their_times(model):
    result = measure(model, tokens=12, repeats=1, rerun_repeats=1)
    assert result["units"] > 5
    assert set(result["cpu_seconds"]) == {"offline", "stream", "by_token", "rerun"}
    assert result["stream_over_offline"] == pytest.approx(
        result["cpu_seconds"]["stream"] / result["cpu_seconds"]["offline"]
    )


@torch.no_grad()
def test_only_decoding_again_reads_states_twice(model):
    read: list[int] = []
    handle = model.unit_decoder.input_proj.register_forward_hook(lambda _, args, out: read.append(out.shape[1]))
    units, work = {}, {}
    for name, arm in decoder_arms(model, torch.randn(1, 9, model.llm.dim)).items():
        read.clear()
        units[name], work[name] = arm(), list(read)
    handle.remove()
    assert work == {"offline": [9], "stream": [4, 4, 1], "by_token": [1] * 9, "rerun": list(range(1, 10))}
    assert len({tuple(spoken) for spoken in units.values()}) == 1 and units["offline"]


def test_the_prompt_is_as_long_as_llama_omnis(model):
    batch = noise_question(SIZES["mid"].llm["vocab_size"])
    assert batch.input_ids.shape[1] - 1 + int(model.audio_positions(batch.audio_lens)[0]) == 361


def test_the_command_writes_its_figures(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("speechzoo.bench.stream.random_model", lambda folder, size: model)
    target = tmp_path / "figures" / "stream.json"
    assert command.main(["stream", "--tokens", "3", "--repeats", "1", "--json", str(target)]) == 0
    report = json.loads(target.read_text())
    assert report["tokens"] == 3 and report["stream_over_offline"] > 0 and report["rerun_over_offline"] > 0
    assert "3 tokens" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        command.main(["stream", "--tokens", "0"])
