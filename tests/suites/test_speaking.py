"""Written questions, spoken for a suite."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from layouts import lines, wav

from speechzoo.audio import read_audio
from speechzoo.cli.evaluate import main
from speechzoo.suites.questions import Question
from speechzoo.suites.speaking import spoken

PROGRAM = """import sys, numpy, soundfile
voice, out, text = sys.argv[1], sys.argv[2], sys.stdin.read()
open({log!r}, "a").write(f"{{voice}} {{text}}\\n")
if "mute" in text:
    sys.exit("cannot say that")
soundfile.write(out, 0.1 * numpy.ones(160 * len(text)), 16000)
"""


@pytest.fixture
def tts(tmp_path: Path) -> tuple[str, Path]:
    program, log = tmp_path / "speak.py", tmp_path / "said.txt"
    program.write_text(PROGRAM.format(log=str(log)))
    return f"command:{sys.executable} {program} {{voice}} {{out}}", log


def test_what_has_no_sound_is_spoken_once(tmp_path: Path, tts: tuple[str, Path]) -> None:
    sound = str(wav(tmp_path / "own.wav"))
    asked = [Question("a", "Who?"), Question("b", "Where?", sound), Question("c", "I am mute."), Question("d")]
    for _ in range(2):
        found, mute = spoken(asked, tmp_path / "q", tts[0], "", ["anna"], threads=1)
    assert [question.id for question in found] == ["a", "b", "d"] and found[1].sound == sound
    assert found[2].sound is None  # without words there is nothing to say
    assert len(read_audio(found[0].sound)) == 160 * len("Who?")
    (told,) = mute
    assert told.startswith("c: text-to-speech failed") and told.endswith("cannot say that")
    assert tts[1].read_text().splitlines().count("anna Who?") == 1
    again, _ = spoken(asked[::-1], tmp_path / "q", tts[0], "", ["x", "y", "z"], threads=1)
    other, _ = spoken(asked, tmp_path / "q", tts[0], "", ["x", "y", "z"], threads=1)
    assert again[-1].sound == other[0].sound  # by the question alone, not by its place


def test_evaluate_speaks_what_the_suite_has_in_writing(
    opened, run_folder, tiny_whisper_pt: Path, tmp_path: Path, tts: tuple[str, Path], monkeypatch, capsys
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    rows = [{"dataset": "helpful_base", "instruction": text} for text in ("What is a whale?", "I am mute.")]
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "alpaca_eval.json").write_text(json.dumps(rows))
    lines(tmp_path / "eval" / "question.jsonl")
    words = [
        str(run_folder),
        "--suite",
        "instructs2s",
        "--data",
        str(tmp_path / "eval"),
        "--out",
        str(tmp_path / "out"),
    ]
    words += ["--latency", "0", "--max-new-tokens", "8", "--device", "cpu", "--recogniser", str(tiny_whisper_pt)]
    monkeypatch.setattr(
        "speechzoo.evaluation.listening.transcribe", lambda whisper, audio, lens, language: ["x"] * len(lens)
    )
    assert main([*words, "--tts", tts[0], "--question-voice", "anna"]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    (model,) = results["models"].values()
    assert model["answers"] == 1 and not model["faults"]
    assert "1 not in the suite: helpful\\_base-001: text-to-speech failed" in capsys.readouterr().out
    assert len(list((tmp_path / "out" / "questions").rglob("*.flac"))) == 1
