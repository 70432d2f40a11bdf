"""The suite that needs no files: the questions that the zoo's models were measured with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from speechzoo.audio import read_audio, write_audio
from speechzoo.evaluation.answers import Answer, load_answers
from speechzoo.evaluation.listening import Listener, rate
from speechzoo.names.published import published
from speechzoo.quickstart.questions import make_pairs
from speechzoo.quickstart.scale import ZOO
from speechzoo.suites.catalogue import SUITES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", ["llasm-tiny", "llama-omni-tiny"])
def test_it_asks_what_the_published_numbers_were_measured_with(name: str):
    told = [a.question for a in load_answers(published(name) / "answers.jsonl")]
    asked = [pair.question for pair in make_pairs(ZOO.train_pairs, ZOO.test_pairs) if pair.split == "test"]
    assert asked == told


def test_a_corpus_folder_is_taken_instead(tmp_path: Path):
    rows = [
        {"id": "train-0000", "split": "train", "kind": "sum", "unseen": False, "question": "a", "answer": "b"},
        {
            "id": "test-0000",
            "split": "test",
            "kind": "sum",
            "unseen": True,
            "question": "One plus one?",
            "answer": "Two.",
        },
    ]
    (tmp_path / "corpus").mkdir()
    text = "".join(json.dumps({**row, "question_audio": f"audio/{row['id']}.flac"}) + "\n" for row in rows)
    (tmp_path / "corpus" / "pairs.jsonl").write_text(text)
    ((question,), missing) = SUITES["quickstart"].read(tmp_path)
    assert (question.id, question.text, question.references, question.kind) == (
        "test-0000",
        "One plus one?",
        ("Two.",),
        "sum",
    )
    assert question.sound == str(tmp_path / "corpus" / "audio" / "test-0000.flac") and question.more["unseen"]
    with pytest.raises(FileNotFoundError, match="speechzoo quickstart --only corpus"):
        SUITES["quickstart"].read(ROOT / "docs")


def test_only_what_was_not_rated_is_rated(tmp_path: Path):
    class Loudness:
        name = "loudness"
        heard: list[int] = []

        def __call__(self, wave, rate):
            self.heard.append(len(wave))
            return 3.0

    write_audio(tmp_path / "a.flac", torch.full((1600,), 0.5))
    answer = Answer("a", "", "", "", "yes", reply_audio="a.flac", quality={"UTMOS": 4.0})
    rated = rate(answer, tmp_path, [Loudness()])
    assert rated.quality == {"UTMOS": 4.0, "loudness": 3.0}
    assert rate(rated, tmp_path, [Loudness()]) is rated and Loudness.heard == [1600]
    write_audio(tmp_path / "a.flac", torch.zeros(1600))
    assert rate(answer, tmp_path, [Loudness()]) == answer  # silence has no quality


@pytest.mark.real
def test_an_answer_longer_than_whispers_window_is_heard_to_its_end(tmp_path: Path):
    short = read_audio(ROOT / "checkpoints" / "question.flac")
    write_audio(tmp_path / "long.flac", torch.cat([short, torch.zeros(29 * 16_000), short]))
    write_audio(tmp_path / "short.flac", short)
    answers = [Answer(name, "", "", "", "", reply_audio=f"{name}.flac") for name in ("short", "long")]
    answers.append(Answer("mute", "", "", "", "", reply_seconds=0.0))
    one, long, mute = Listener("part:whisper-tiny.en", "en", "cpu").write_down(answers, tmp_path)
    assert mute.spoken == "" and one.spoken.lower().count("italy") == 1
    assert long.spoken.lower().count("italy") == 2  # the second one begins after 30 s
