"""`speechzoo bench latency`: figures that follow from the events, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from talk_parts import vocoder

from speechzoo.bench import latency
from speechzoo.cli.bench import main
from speechzoo.models import LLaMAOmni
from speechzoo.talk import sources
from speechzoo.talk.sources import Talker


def test_command_writes_what_it_prints(
    omni: LLaMAOmni, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.setattr(sources, "load", lambda path, trust_code=False: omni)
    monkeypatch.setattr(latency, "bandwidth", lambda device: 1e9)
    vocoder().save(tmp_path / "vocoder")
    target = tmp_path / "figures.json"
    arguments = ["run", "--questions", str(manifest), "--limit", "2", "--vocoder", str(tmp_path / "vocoder")]
    assert main(["latency", *arguments, "--max-new-tokens", "24", "--json", str(target)]) == 0
    printed, found = capsys.readouterr().out, json.loads(target.read_text())
    assert list(found["omegas"]) == ["10", "20", "40", "60", "80", "100", "offline"]
    assert found["questions"] == 2
    for row in found["omegas"].values():
        first = {name: row[name]["median"] for name in row}
        assert first["first_text"] <= first["first_unit"] <= first["llm"] <= first["first_audio"] <= first["total"]
        assert row["first_audio"]["median"] <= row["first_audio"]["p95"]
    roof = found["roofline"]
    assert roof["least_seconds"] == pytest.approx(roof["bytes_per_token"] / 1e9)
    assert "236" in printed and "1543 + 211 = 1754" in printed and "232 at least" in printed


def test_bytes_of_a_token_leave_the_input_table_out(omni: LLaMAOmni):
    llm = omni.llm.lm
    untied = sum(p.numel() for p in llm.parameters()) - llm.get_input_embeddings().weight.numel()
    decoder = sum(p.numel() for p in omni.unit_decoder.parameters())
    assert llm.get_output_embeddings().weight is not llm.get_input_embeddings().weight
    assert latency.weight_bytes(omni) == 4 * (untied + decoder)


def test_model_without_a_vocoder_is_timed_to_its_units(omni: LLaMAOmni, manifest: Path):
    found = latency.measure(Talker("omni", omni), latency.spoken_questions(manifest, 1), 8)
    assert list(found) == ["offline"] and "first_unit" in found["offline"] and "first_audio" not in found["offline"]


def test_bandwidth_grows_with_what_is_read_at_once(monkeypatch: pytest.MonkeyPatch):
    reads = []
    mv = torch.mv
    monkeypatch.setattr(torch, "mv", lambda m, v: reads.append(m.numel() * m.element_size()) or mv(m, v))
    rate = latency.bandwidth(torch.device("cpu"), megabytes=8, repeats=2)
    assert reads == [8 * 2**20] * 3 and 1e7 < rate < 1e13


def test_manifest_without_sound(tmp_path: Path):
    file = tmp_path / "text.jsonl"
    messages = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]
    file.write_text(json.dumps({"id": "x", "messages": messages}) + "\n")
    with pytest.raises(ValueError, match="no spoken question"):
        latency.spoken_questions(file, 3)


def test_a_picture_that_cannot_be_drawn_is_told_before_the_measurement(monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(latency, "find_spec", lambda name: None)
    assert main(["latency", "run", "--questions", "none.jsonl", "--png", "a.png"]) == 1
    assert "--png needs matplotlib" in capsys.readouterr().err


def test_picture_is_a_png():
    pytest.importorskip("matplotlib")
    from speechzoo.bench.latency_picture import picture

    times = {name: {"median": 0.1, "p95": 0.2} for name in ("llm", "first_audio")}
    result = {"model": "m", "device": "cpu", "questions": 1, "gpt4o_ms": latency.GPT4O}
    result |= {"omegas": {"10": times, "offline": {}}, "paper_ms": {"10": (1, 2, 3), "offline": (4, 5, 9)}}
    assert picture(result).startswith(b"\x89PNG")


def test_a_static_cache_is_asked_for_and_told(omni: LLaMAOmni, manifest: Path, monkeypatch: pytest.MonkeyPatch):
    told = []
    steps = omni.llm.steps
    monkeypatch.setattr(omni.llm, "steps", lambda *a, **k: (told.append(k["cache_implementation"]), steps(*a, **k))[1])
    questions = latency.spoken_questions(manifest, 1)
    found = latency.report(Talker("omni", omni), questions, 8, cache_implementation="static")
    assert set(told) == {"static"} and found["generation"] == {"cache_implementation": "static"}


def test_a_tokens_time_is_that_of_text_and_units_alone(omni: LLaMAOmni, manifest: Path):
    """The sound of an offline answer comes after all of them, and is not counted."""
    speaking = Talker("omni", omni, {"vocoder": vocoder()})
    took = latency.ask(speaking, latency.spoken_questions(manifest, 1)[0], 0, 24)
    assert took["token"] * (took["tokens"] - 1) == pytest.approx(took["last_word"] - took["first_text"])
    assert took["last_word"] <= took["first_audio"]
