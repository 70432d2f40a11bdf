"""The quickstart corpus: reproducible texts, honest splits, resumable audio, manifests that hold what they promise."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.numpy import load_file

from speechzoo.data.instructions import ASR_INSTRUCTIONS, asr_messages
from speechzoo.quickstart import facts
from speechzoo.quickstart.corpus import build_corpus, latents_of, speak_questions, write_manifests
from speechzoo.quickstart.questions import KINDS, Pair, make_pairs


class ToneVoice:
    """Says each phoneme as 20 ms of a tone; words with a Q it does not know."""

    sample_rate = 22050
    fingerprint = "tones"

    def __init__(self) -> None:
        self.spoken: list[str] = []

    def phonemes(self, text: str) -> list[str]:
        if "q" in text.lower():
            raise ValueError(f"cannot say {text!r}")
        return list(text.lower())

    def speak(self, text: str, speed: float, noise: float, seed: int) -> np.ndarray:
        self.spoken.append(text)
        time = np.arange(int(len(self.phonemes(text)) * 441 / speed)) / self.sample_rate
        return (0.3 * np.sin(2 * np.pi * 300 * time)).astype(np.float32)

    def speak_with_latents(self, *said) -> tuple[np.ndarray, np.ndarray]:
        samples = self.speak(*said)
        return samples, np.arange(len(samples) // 256 * 4, dtype=np.float32).reshape(-1, 4)


PAIRS = [
    Pair("train", "greeting", "Hello, I am Anna.", "Hello Anna, nice to meet you.", False),
    Pair("train", "greeting", "Hi, I am Anna.", "Hello Anna, nice to meet you.", False),
    Pair("test", "greeting", "Hi, I am Peter.", "Hello Peter, nice to meet you.", True),
]


def test_pairs_depend_on_the_seed_alone():
    assert make_pairs(120, 40, seed=3) == make_pairs(120, 40, seed=3)
    assert make_pairs(120, 40, seed=3) != make_pairs(120, 40, seed=4)


@pytest.mark.parametrize(("train", "test"), [(700, 100), (45, 19), (19, 0)])
def test_sizes_are_the_ones_asked_for_and_kinds_are_even(train, test):
    counts = Counter((pair.split, pair.kind) for pair in make_pairs(train, test))
    for split, wanted in (("train", train), ("test", test)):
        of_split = [counts[split, kind] for kind in KINDS]
        assert sum(of_split) == wanted
        assert max(of_split) - min(of_split) <= 1


def test_asking_for_too_many_says_how_many_there_are():
    with pytest.raises(ValueError, match="there are only"):
        make_pairs(100_000, 10)


@pytest.mark.parametrize("seed", range(5))
def test_splits_share_no_question(seed):
    pairs = make_pairs(seed=seed)
    questions = [pair.question for pair in pairs]
    assert len(set(questions)) == len(questions)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_called_unseen_is_nowhere_in_training(seed):
    pairs = make_pairs(seed=seed)
    train = [pair for pair in pairs if pair.split == "train"]
    heard = set(re.findall(r"[a-z]+", " ".join(f"{pair.question} {pair.answer}" for pair in train).lower()))
    numbers = set(facts.NUMBERS)
    trained_sums = {frozenset(pair.answer.lower().split()[:3:2]) for pair in train if pair.kind == "sum"}
    trained_answers = {(pair.kind, pair.answer) for pair in train}
    things = set(facts.BY_SIZE)
    trained_sizes = {frozenset(things & set(_words(pair))) for pair in train if pair.kind == "bigger"}
    unseen = [pair for pair in pairs if pair.unseen]
    assert {pair.kind for pair in unseen} == {"sum", "name", "home", "greeting", "mine", "bigger", "repeat"}
    assert all(pair.split == "test" for pair in unseen)
    for pair in unseen:
        if pair.kind in ("name", "greeting", "home"):
            new = _words(pair)[-1] if pair.kind != "greeting" else pair.answer.split()[1].strip(",").lower()
            assert new not in heard
        elif pair.kind == "sum":
            first, second = pair.answer.lower().split()[:3:2]
            assert {first, second} <= numbers
            assert frozenset((first, second)) not in trained_sums
        elif pair.kind == "bigger":
            assert frozenset(things & set(_words(pair))) not in trained_sizes
        else:
            assert (pair.kind, pair.answer) not in trained_answers


def _words(pair: Pair) -> list[str]:
    return re.findall(r"[a-z]+", f"{pair.question} {pair.answer}".lower())


def test_other_test_questions_ask_for_a_taught_fact_in_new_words():
    pairs = make_pairs()
    taught = {(pair.kind, pair.answer) for pair in pairs if pair.split == "train"}
    seen = [pair for pair in pairs if pair.split == "test" and not pair.unseen]
    assert len(seen) >= 50
    assert all((pair.kind, pair.answer) in taught for pair in seen)


def test_sums_are_right():
    for pair in make_pairs():
        if pair.kind == "sum":
            first, _, second, _, total = pair.answer.lower().rstrip(".").split()
            assert facts.NUMBERS.index(first) + facts.NUMBERS.index(second) == facts.NUMBERS.index(total)


def test_texts_are_short_and_made_of_words():
    vowel_article = re.compile(r"\ba [aeiou]|\ban [^aeiou]", re.IGNORECASE)
    for pair in make_pairs(2000, 200):
        for text, longest in ((pair.question, 13), (pair.answer, 9)):
            assert re.fullmatch(r"[A-Z][A-Za-z ,.?]*[.?]", text), text
            assert len(text.split()) <= longest, text
            assert not vowel_article.search(text), text


def test_corpus_files_hold_what_the_records_say(tmp_path):
    voice, seen = ToneVoice(), []
    records = build_corpus(tmp_path, voice, PAIRS, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()] == records
    assert [record["id"] for record in records] == ["train-0000", "train-0001", "test-0000"]
    assert records[0]["answer_audio"] == records[1]["answer_audio"]
    assert seen == [(done, 5) for done in range(6)]
    for record in records:
        samples, rate = soundfile.read(tmp_path / record["question_audio"])
        assert rate == 16_000
        assert len(samples) / rate == pytest.approx(0.02 * len(record["question"]) / record["rate"], abs=0.001)
    assert not list((tmp_path / "audio").glob(".*"))


def test_latents_of_answers_are_kept_beside_their_sound(tmp_path):
    records = build_corpus(tmp_path, ToneVoice(), PAIRS, workers=1)
    assert len(list((tmp_path / "latents").iterdir())) == 2  # different answers
    latents = load_file(tmp_path / latents_of(records[0]["answer_audio"]))["latents"]
    seconds = soundfile.info(tmp_path / records[0]["answer_audio"]).duration
    assert latents.dtype == np.float16 and latents[1].tolist() == [4, 5, 6, 7]
    assert len(latents) == pytest.approx(seconds * 22050 / 256, abs=1)
    (tmp_path / latents_of(records[0]["answer_audio"])).unlink()
    again = ToneVoice()
    build_corpus(tmp_path, again, PAIRS, workers=1)
    assert again.spoken == [PAIRS[0].answer]


def test_a_second_run_speaks_only_what_is_missing(tmp_path):
    records = build_corpus(tmp_path, ToneVoice(), PAIRS, workers=1)
    (tmp_path / records[2]["question_audio"]).unlink()
    again = ToneVoice()
    assert build_corpus(tmp_path, again, PAIRS, workers=1) == records
    assert again.spoken == ["Hi, I am Peter."]


def test_another_voice_does_not_reuse_the_first_ones_files(tmp_path):
    first = build_corpus(tmp_path, ToneVoice(), PAIRS, workers=1)
    other = ToneVoice()
    other.fingerprint = "other tones"
    second = build_corpus(tmp_path, other, PAIRS, workers=1)
    assert not {record["answer_audio"] for record in first} & {record["answer_audio"] for record in second}


def test_a_word_that_cannot_be_said_stops_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="cannot say"):
        build_corpus(tmp_path / "new", ToneVoice(), [*PAIRS, Pair("train", "x", "Quick?", "No.", False)], workers=1)
    assert not (tmp_path / "new").exists()


def test_manifests(tmp_path):
    build_corpus(tmp_path, ToneVoice(), PAIRS, workers=1)
    paths = write_manifests(tmp_path)
    rows = {name: [json.loads(line) for line in path.read_text().splitlines()] for name, path in paths.items()}
    counts = {"asr_train": 3, "asr_test": 1, "qa_train": 2, "qa_text_train": 1, "qa_test": 1}
    assert {name: len(of) for name, of in rows.items()} == counts
    assert rows["qa_text_train"][0]["messages"][0]["content"] == PAIRS[0].question  # in writing
    question, answer = rows["qa_test"][0]["messages"]
    assert [item["type"] for item in question["content"]] == ["audio"]
    assert answer["content"] == "Hello Peter, nice to meet you."
    for path in (question["content"][0]["path"], answer["audio"]):
        assert not Path(path).is_absolute() and (tmp_path / path).is_file()
    assert [row["messages"][1]["content"] for row in rows["asr_train"]] == [
        "Hello, I am Anna.",
        "Hi, I am Anna.",
        "Hello Anna, nice to meet you.",
    ]


def test_manifests_without_a_corpus_name_the_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"pairs\.jsonl"):
        write_manifests(tmp_path)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_recognition_instructions_stand_on_both_sides(language):
    assert len(set(ASR_INSTRUCTIONS[language])) >= 11
    rng, sides, used = random.Random(0), Counter(), set()
    for _ in range(400):
        user, assistant = asr_messages("a.wav", "hello", language, rng)
        assert assistant == {"role": "assistant", "content": "hello"}
        sides[user["content"][0]["type"]] += 1
        used |= {item["text"] for item in user["content"] if item["type"] == "text"}
    assert used == set(ASR_INSTRUCTIONS[language])
    assert 150 < sides["audio"] < 250


def test_unknown_instruction_language_is_refused():
    with pytest.raises(ValueError, match="there are en, zh"):
        asr_messages("a.wav", "hola", "es")


def test_questions_alone_are_spoken_as_in_a_corpus(tmp_path):
    (whole,) = [
        row for row in build_corpus(tmp_path / "whole", ToneVoice(), PAIRS, workers=1) if row["split"] == "test"
    ]
    speak_questions(tmp_path / "alone", ToneVoice(), PAIRS[2:], workers=1)
    (alone,) = [json.loads(line) for line in (tmp_path / "alone" / "pairs.jsonl").read_text().splitlines()]
    assert alone == {key: value for key, value in whole.items() if key != "answer_audio"}
    sounds = [(tmp_path / place / alone["question_audio"]).read_bytes() for place in ("whole", "alone")]
    assert sounds[0] == sounds[1]
    again = ToneVoice()
    speak_questions(tmp_path / "alone", again, PAIRS[2:], workers=1)
    assert again.spoken == []
