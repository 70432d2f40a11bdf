"""The raw example, the rule that rewrites, validation records apart: what the reproduce scripts begin with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechzoo.cli import main
from speechzoo.corpora.splits import split
from speechzoo.corpora.spoken_rules import FILLERS, RuleRewriter
from speechzoo.corpora.stage import Broken
from speechzoo.quickstart.questions import make_pairs
from speechzoo.suites.catalogue import SUITES
from speechzoo.system.files import read_jsonl, write_jsonl


class Tones:
    """A voice whose clips are as long as the text."""

    spoken: list[str] = []

    def speak(self, text: str, voice: str, seed: int) -> torch.Tensor:
        self.spoken.append(text)
        return 0.1 * torch.ones(160 * len(text))


def test_the_example_is_read_as_alpaca_librispeech_and_instructs2s(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("speechzoo.corpora.example.QuickstartVoices", Tones)
    monkeypatch.setattr(Tones, "spoken", [])
    raw = tmp_path / "raw"
    command = ["data", "example", str(raw), "--questions", "40", "19", "--clips", "3", "2"]
    assert main(command) == 0 and len(Tones.spoken) == 5
    assert main(command) == 0 and len(Tones.spoken) == 5  # what is there stays
    pairs = make_pairs(40, 19)
    train, test = ([p for p in pairs if p.split == name] for name in ("train", "test"))
    alpaca = json.loads((raw / "alpaca.json").read_text())
    assert [(row["instruction"], row["output"]) for row in alpaca] == [(p.question, p.answer) for p in train]

    questions, missing = SUITES["instructs2s"].read(raw / "eval")
    assert not missing and sum(p.kind == "sum" for p in test) == 1
    asked = [(p.question, (p.answer,)) for p in test if p.kind != "sum"]  # mathematics, which the paper leaves out
    assert [(q.text, q.references) for q in questions] == asked

    assert main(["data", "asr", str(tmp_path / "asr"), f"librispeech={raw / 'LibriSpeech'}", "--val", "1"]) == 0
    texts = [row["messages"][-1]["content"] for row in read_jsonl(tmp_path / "asr" / "data.jsonl")]
    assert texts == [p.question for p in train[:3]]
    halves = [len(read_jsonl(tmp_path / "asr" / f"{name}.jsonl")) for name in ("train", "val")]
    assert halves == [2, 1]
    heard, _ = SUITES["librispeech-test-clean"].read(raw / "LibriSpeech")
    assert [q.references for q in heard] == [(p.question,) for p in test[:2]]


def test_validation_records_depend_on_what_they_hold_alone(tmp_path: Path) -> None:
    rows = [{"id": f"r{n}", "text": "\u2028" * (n % 3)} for n in range(50)]
    sets = []
    for name, some in (("all", rows), ("turned", rows[::-1]), ("fewer", rows[:40])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "data.jsonl", some)
        split(tmp_path / name, 10)
        train, val = (read_jsonl(tmp_path / name / f"{half}.jsonl") for half in ("train", "val"))
        assert len(val) == 10 and [row for row in some if row not in val] == train
        sets.append({row["id"] for row in val})
    assert sets[0] == sets[1]
    assert {name for name in sets[0] if int(name[1:]) < 40} <= sets[2]
    with pytest.raises(ValueError, match="leaves none to train with"):
        split(tmp_path / "all", 50)
    with pytest.raises(ValueError, match="at least 0, not -2"):
        split(tmp_path / "all", -2)


def test_the_rule_rewrites_for_speech() -> None:
    rewrite = RuleRewriter(seed=0)
    ((asked, answered),) = rewrite([["Name 2 rivers of 1,000 miles.", "The Nile. The Volga. The Rhine is shorter."]])
    assert answered == "The Nile. The Volga."
    assert asked in [f + ("N" if not f else "n") + "ame two rivers of one thousand miles." for f in FILLERS]
    assert rewrite([["Name 2 rivers of 1,000 miles.", "The Nile."]])[0][0] == asked
    kept = [rewrite([[f"I saw {n} cows.", "Good."]])[0][0] for n in range(20)]
    assert len({text.partition("I saw")[0] for text in kept}) == 4  # all fillers, and none; `I` stays large
    for wrong in ("It costs 2.5 pounds.", "In 12345678 years.", "The 2nd one.", "See `x`."):
        with pytest.raises(Broken):
            rewrite([[wrong, "Good."]])


def test_a_folder_of_other_questions_or_of_somebody_else_is_left_alone(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("speechzoo.corpora.example.QuickstartVoices", Tones)
    command = ["data", "example", str(tmp_path / "raw"), "--questions", "20", "9", "--clips", "2", "0"]
    assert main(command) == 0
    said = sorted((tmp_path / "raw").rglob("*.txt"))[0].read_bytes()
    assert main([*command, "--seed", "1"]) == 1  # the clips would not say what is written beside them
    assert "other settings (seed: 0 there, 1 asked)" in capsys.readouterr().err
    assert sorted((tmp_path / "raw").rglob("*.txt"))[0].read_bytes() == said
    (tmp_path / "alpaca.json").write_text("mine")
    assert main(["data", "example", str(tmp_path), "--questions", "20", "9"]) == 1
    assert "alpaca.json: is not of this command" in capsys.readouterr().err
    assert (tmp_path / "alpaca.json").read_text() == "mine"
