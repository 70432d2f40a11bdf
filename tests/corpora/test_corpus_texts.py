"""What of written instructions can be spoken, case by case; and their layouts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speechzoo.corpora.stage import Broken
from speechzoo.corpora.tables import rows
from speechzoo.corpora.texts import STYLES, UNSPEAKABLE, instructions, suitable, words

BAD = {
    "code": [
        "Use this:\n```python\nprint(1)\n```",
        "def area(r):\n    return r",
        "#include <stdio.h>",
        "from math import pi",
        "Write <div class='a'>hello</div> there",
        "SELECT name FROM people",
        "Call it with run() and wait",
        "np.zeros(3) gives zeros",
        "Run `ls` and tell me",
    ],
    "formula": [
        r"The answer is \frac{1}{2}",
        "Solve $x^2 + 1 = 0$ for me",
        "Compute 3 × 4",
        "x = 5, what is twice that?",
        "It is 2^10 bytes",
        "√2 is irrational",
    ],
    "URL or address": [
        "See https://example.org/a",
        "at www.example",
        "write to me@example.com",
        "It is on Example.com.",
    ],
    "unreadable characters": ["caf� au lait", "a\x07b", "Привет, как дела?"],
    "many symbols": ["| a | b | c |", "## Title ## ***bold***", "😀😀😀 hi"],
}
GOOD = [
    "What is the capital of France?",
    "Give me tips for public transport in Rome, please.",
    "It costs $5 to $10, or 20% of what you earn; that's e.g. 3/4 of the price.",
    "1. Sleep well.\n2. Eat well.\n- Drink water.",
    "The dog(s) ran home. From Paris we went on;\nit was late.",
    "法国的首都是哪里?“巴黎”。",
    "A naïve café in Zürich",
]


@pytest.mark.parametrize(("rule", "text"), [(rule, text) for rule, texts in BAD.items() for text in texts])
def test_what_cannot_be_spoken_is_found(rule: str, text: str):
    assert UNSPEAKABLE[rule](text)


@pytest.mark.parametrize("text", GOOD)
def test_ordinary_text_is_kept(text: str):
    assert [rule for rule, found in UNSPEAKABLE.items() if found(text)] == []


def test_words_are_characters_where_there_are_no_blanks():
    assert words("Hello there, you two") == 4
    assert words("你好 world") == 3


def test_llama_omni_takes_the_first_round():
    turns = [["How are you?", "Fine."], ["Why?", "See https://a.org"]]
    assert suitable(turns, STYLES["llama_omni"]) == turns[:1]


LOW = [
    "I'm sorry, but I can't do that.",
    "As an AI language model, I have none.",
    "Yes.",
    "Okay!",
    "N/A",
    "对不起,我不能。",
]


@pytest.mark.parametrize("answer", LOW)
def test_llasm_ends_a_conversation_before_an_answer_of_little_information(answer: str):
    turns = [["How are you?", "Fine, I slept well."], ["And now?", answer], ["More?", "Yes, a lot of it."]]
    assert suitable(turns, STYLES["llasm"]) == turns[:1]
    with pytest.raises(Broken, match="answer of little information"):
        suitable(turns[1:], STYLES["llasm"])


def test_llasm_leaves_out_a_conversation_with_anything_unspeakable():
    turns = [["How are you?", "Fine, I slept well."], ["And now?", "| a | b | c |"]]
    with pytest.raises(Broken, match="many symbols: in the answer") as error:
        suitable(turns, STYLES["llasm"])
    assert error.value.reason == "many symbols"


def test_a_question_is_no_longer_than_whisper_hears():
    with pytest.raises(Broken, match="question too long: 81 words, 80 are taken"):
        suitable([["word " * 81, "Fine."]], STYLES["llama_omni"])
    with pytest.raises(Broken, match="empty answer"):
        suitable([["Why?", ""]], STYLES["llama_omni"])


def written(path: Path, value: object) -> str:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return str(path)


def test_the_layouts_of_alpaca_sharegpt_ultrachat_and_chats(tmp_path: Path):
    alpaca = [
        {"instruction": "Sort.", "input": "b a", "output": "a b"},
        {"instruction": "Hi", "input": "", "output": "Ho"},
    ]
    sharegpt = [
        {"id": "x1", "conversations": [
            {"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        {"id": "x2", "conversations": [{"from": "gpt", "value": "A"}, {"from": "human", "value": "Q"}]},
        {"id": "x3", "conversations": []},
    ]  # fmt: skip
    ultrachat = [{"id": "7", "data": ["q1", "a1", "q2", "a2", "q3"]}]
    chat = [{"prompt_id": "p", "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "v"}]}]
    lines = tmp_path / "ultrachat.json"  # an object a line, as UltraChat's files are
    lines.write_text("".join(json.dumps(row) + "\n" for row in ultrachat) + "{broken\n")
    names = [written(tmp_path / "alpaca.json", alpaca), written(tmp_path / "sharegpt.json", sharegpt), str(lines)]
    found = list(instructions([*names, written(tmp_path / "chat.json", chat)]))
    assert [item.number for item in found] == list(range(8))
    assert {item.id: item.value["turns"] for item in found if isinstance(item.value, dict)} == {
        "alpaca-0": [["Sort.\nb a", "a b"]],
        "alpaca-1": [["Hi", "Ho"]],
        "sharegpt-x1": [["Q", "A"]],
        "ultrachat-7": [["q1", "a1"], ["q2", "a2"]],
        "chat-p": [["u", "v"]],
    }
    broken = {item.id: item.value for item in found if isinstance(item.value, Broken)}
    assert {key: value.reason for key, value in broken.items()} == {
        "sharegpt-x2": "roles out of turn",
        "sharegpt-x3": "unknown layout",
        "ultrachat-#1": "not JSON",
    }
    assert "ultrachat.json:2" in broken["ultrachat-#1"].detail


def test_the_first_so_many_of_a_file(tmp_path: Path):
    many = [{"instruction": str(n), "output": "x"} for n in range(9)]
    one, two = written(tmp_path / "one.json", many), written(tmp_path / "two.json", many)
    assert [item.id for item in instructions([f"{one}#2", two], limit=1)] == ["one-0", "one-1", "two-0"]
    with pytest.raises(ValueError, match="how many"):
        list(instructions([f"{one}#few"]))


def test_a_json_array_is_read_piece_by_piece_and_its_end_may_be_missing(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("speechzoo.corpora.tables.CHUNK", 7)
    values = [{"a": n, "text": '[] {} , " ü' * n} for n in range(5)]
    path = tmp_path / "a.json"
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False), encoding="utf-8")
    assert list(rows(str(path))) == list(enumerate(values))
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    *whole, (number, last) = rows(str(path))
    assert [row for _, row in whole] == values[:4]
    assert number == 4 and isinstance(last, Broken) and "cut off" in last.detail


def test_null_is_no_text_and_files_of_one_name_are_told_apart(tmp_path: Path):
    for folder, output in (("A", None), ("B", "Ho")):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder / "train.json", [{"instruction": folder, "output": output}])
    found = {item.id: item.value for item in instructions([str(tmp_path / f / "train.json") for f in "AB"])}
    assert {key: value["turns"] for key, value in found.items()} == {
        "A/train-0": [["A", ""]],
        "B/train-0": [["B", "Ho"]],
    }
    with pytest.raises(Broken, match="empty answer"):
        suitable(found["A/train-0"]["turns"], STYLES["llama_omni"])


def test_what_is_no_utf8_or_nested_too_deep_is_a_broken_row(tmp_path: Path):
    lines = tmp_path / "a.jsonl"
    lines.write_bytes(b'{"a": "\xe9"}\n{"a": 1}\n')
    (_, broken), good = rows(str(lines))
    assert isinstance(broken, Broken) and f"{lines}:1" in broken.detail and good == (1, {"a": 1})
    deep = tmp_path / "deep.json"
    deep.write_text('[{"a": 1}, ' + "[" * 100_000)
    good, (_, broken) = rows(str(deep))
    assert good == (0, {"a": 1}) and isinstance(broken, Broken) and "nested too deep" in broken.detail
