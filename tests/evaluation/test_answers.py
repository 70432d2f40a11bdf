"""Answers survive their file, bad lines are named, and scores pool, split and leave out what was not measured."""

from __future__ import annotations

from dataclasses import replace

import pytest

from speechzoo.evaluation import Answer, load_answers, save_answers, score, score_by
from speechzoo.evaluation.answers import MEASURES

ANSWERS = [
    Answer("a", "capital", "Capital of France?", "It is Paris.", "It is Paris", seconds=1.0, seen=True),
    Answer("b", "sum", "One plus one?", "It is two.", "It is 3.", seconds=2.0, seen=False),
    Answer("c", "sum", "one plus one", "It is two.", "", seconds=9.0, units=[1, 2], reference_units=[1, 3, 4]),
]


def test_file_round_trip(tmp_path):
    path = tmp_path / "deep" / "answers.jsonl"
    save_answers(path, ANSWERS)
    assert load_answers(path) == ANSWERS
    assert [file.name for file in path.parent.iterdir()] == ["answers.jsonl"]


def test_an_interrupted_save_leaves_the_old_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    save_answers(path, ANSWERS[:1])

    def broken():
        yield ANSWERS[1]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        save_answers(path, broken())
    assert load_answers(path) == ANSWERS[:1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"answers.jsonl:2: not an answer record"),
        ('{"id": "x"}', r"answers.jsonl:2: not an answer record .*kind"),
        ('{"id":"x","kind":"k","question":"q","reference":"r","text":"t","txt":1}', r":2: unknown keys \['txt'\]"),
        ('{"id":"a","kind":"k","question":"q","reference":"r","text":"t"}', r":2: the id 'a' comes twice"),
        ("3", r"answers.jsonl:2: not an answer record"),
        ("[]", r"answers.jsonl:2: not an answer record"),
        ('"id"', r"answers.jsonl:2: not an answer record"),
        ('{"id":7,"kind":"k","question":"q","reference":"r","text":"t"}', r":2: id is 7, and has to be a text"),
        ('{"id":"x","kind":"k","question":null,"reference":"r","text":"t"}', r":2: question is None, and has to be a"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    path = tmp_path / "answers.jsonl"
    save_answers(path, ANSWERS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        load_answers(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        load_answers(tmp_path / "none.jsonl")


def test_scores_by_hand():
    scores = score(ANSWERS)
    assert scores["wer"].value == pytest.approx((0 + 1 + 3) / 9)
    assert scores["exact_match"].value == pytest.approx(1 / 3)
    assert scores["unit_error_rate"].value == pytest.approx(2 / 3)  # over the one answer that has units
    assert scores["seconds"].value == 2.0
    assert scores["wer"].low <= scores["wer"].value <= scores["wer"].high
    assert "heard_wer" not in scores
    assert score([]) == {}


def test_heard_is_compared_with_the_question():
    cascade = Answer("a", "k", "Who are you now?", "Me.", "Me.", heard="who are YOU, cow")
    assert score([cascade])["heard_wer"].value == pytest.approx(1 / 4)


def test_the_same_question_twice_is_one_observation():
    one = score([ANSWERS[0], ANSWERS[1]])
    twice = score([ANSWERS[0], ANSWERS[1], *(Answer(**{**a.__dict__, "id": a.id + "slow"}) for a in ANSWERS[:2])])
    assert twice["wer"] == one["wer"]


def test_split_by_kind_and_seen():
    kinds = score_by(ANSWERS, lambda a: a.kind)
    assert list(kinds) == ["capital", "sum"]
    assert kinds["capital"]["wer"].value == 0 and kinds["sum"]["exact_match"].value == 0
    assert list(score_by(ANSWERS, lambda a: a.seen)) == [True, False]  # the third does not say


def test_a_question_without_a_right_answer_is_neither_right_nor_wrong():
    known = Answer("1", "k", "how many cows?", "two cows", "two cows", heard="how many cows")
    unknown = Answer("2", "k", "", "", "any number of words", heard="hm hm", spoken="any number of words")
    found = score([known, unknown])
    assert {key: found[key].value for key in ("wer", "cer", "exact_match", "rouge_l", "heard_wer", "asr_wer")} == {
        "wer": 0, "cer": 0, "exact_match": 1, "rouge_l": 1, "heard_wer": 0, "asr_wer": 0,
    }  # fmt: skip
    assert set(score([unknown])) == {"asr_wer", "asr_cer"}
    silent = replace(known, text="", spoken="hm")  # an answer of no words, of which a word is heard
    assert MEASURES[6].counted([silent]) == [(silent, (1, 0))]
