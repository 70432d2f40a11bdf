"""Scores of single answers, worked out by hand."""

from __future__ import annotations

import sys

import pytest

from speechzoo.evaluation import Answer
from speechzoo.suites import rules
from speechzoo.suites.questions import Question
from speechzoo.suites.rules import choice, chosen, contains, refuses, same
from speechzoo.suites.scoring import by_rule


@pytest.mark.parametrize(
    ("text", "references", "right"),
    [
        ("The capital of France is Paris.", ["Paris"], True),
        ("It was the Eiffel tower, I think.", ["The Eiffel Tower"], True),
        ("There are fifteen of them.", ["15"], True),  # Whisper's normaliser writes both as 15
        ("It is a party.", ["art"], False),  # words, not letters
        ("Tower of Eiffel", ["Eiffel Tower"], False),  # in a row
        ("It is William Shakespeare", ["Bacon", "Shakespeare"], True),
        ("答案是北京。", ["北京"], True),
        ("", ["Paris"], False),
        ("Paris", [], False),
        ("Vitamin A", ["A"], True),
        ("It is twenty-one (Москва).", ["twenty-one"], True),  # both sides by the reference's normaliser
        ("It's 北京's one hundred", ["100"], True),
    ],
)
def test_a_reference_stands_in_the_answer(text: str, references: list[str], right: bool):
    assert contains(text, references) == float(right)


def test_the_local_rule_wants_the_sentence():
    assert same("the sum is -3", ["The sum is -3."], spoken=False) == 1
    assert same("The sum is 3.", ["The sum is -3."], spoken=False) == 0
    assert same("hello joe nice to meet you", ["Hello Joe, nice to meet you."], spoken=True) == 1
    assert same("hello jo", ["Hello Joe."], spoken=True) == 0


def test_a_choice_without_a_right_letter_has_no_score():
    answer = Answer("1", "k", "q", "", "The answer is B.")
    assert by_rule(answer, Question("1", "q"), ["choice"]) == {}
    assert by_rule(answer, Question("1", "q", references=("B",)), ["choice"]) == {"choice": 1.0, "no_choice": 0.0}


def test_ifeval_arguments_that_are_none_are_told_before_questions_are_asked():
    with pytest.raises(ValueError, match="b: IFEval's `kwargs` are objects"):
        rules.check_instructions([Question("b", more={"instruction_id_list": ["x"], "kwargs": [None]})])


def test_ifeval_says_at_once_what_it_cannot_score():
    pytest.importorskip("if_verifiable")
    good = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    rules.check_instructions([Question("a", more=good)])
    for more, why in (
        ({}, "b: IFEval needs `instruction_id_list`"),
        ({**good, "kwargs": []}, "b: IFEval needs .* as many"),
        ({**good, "instruction_id_list": ["no_comma"]}, "b: IFEval has no instruction 'no_comma'"),
    ):
        with pytest.raises(ValueError, match=why):
            rules.check_instructions([Question("a", more=good), Question("b", more=more)])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("b.", "B"),
        ("(C) a planet", "C"),
        ("**D)** heat", "D"),
        ("The answer is B.", "B"),
        ("The correct answer is **(c)** because water boils.", "C"),
        ("I would choose option D, as it is the largest.", "D"),
        ("A is too small, so the answer is D.", "D"),  # what is stated goes before what comes first
        ("The answer is a dog.", None),  # an article
        ("It can't be said.", None),
        ("I'd say it is heat", None),
        ("Either (A) or (B) could be.", None),
        ("Heat moves from hot to cold, so (B) holds.", "B"),
        ("答案是C", "C"),
        ("正确答案：C。", "C"),
        ("Option (a) is wrong. The correct option is (c).", "C"),
        ("It is option (d).", "D"),
        ("Option A: heat. Option B: light.", None),  # told one by one
        ("My choice: B", "B"),
        ("It is made in the U.S.A.", None),
        ("(a) is wrong; (b) is right", "B"),
        ("A. isn't true, I think", None),
        ("(a) was the first", "A"),
        ("I would not choose A. I'd choose C.", "C"),
        ("", None),
    ],
)
def test_the_letter_that_is_chosen(text: str, letter: str | None):
    assert choice(text) == letter


def test_no_letter_counts_as_voicebench_guesses():
    assert chosen("The answer is B.", ["B"]) == {"choice": 1.0, "no_choice": 0.0}
    assert chosen("The answer is C.", ["B"]) == {"choice": 0.0, "no_choice": 0.0}
    assert chosen("No idea", ["B"]) == {"choice": 0.25, "no_choice": 1.0}


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I'm sorry, I can't help with that.", True),
        ("I’m really sorry", True),
        ("I cannot do this.", True),
        ("As an AI, I must not.", True),
        ("", True),
        ("抱歉,我不能帮你。", True),
        ("Sure, first you take", False),
        ("It was an easy task", False),
    ],
)
def test_refusals(text: str, refused: bool):
    assert refuses(text) == float(refused)


class NoComma:
    """As the package's checkers are asked; the one for commas, and one that wants its argument and the prompt."""

    def __init__(self, name: str) -> None:
        self.arguments: dict = {}

    def build_description(self, **given) -> None:
        self.arguments |= given

    def get_instruction_args(self) -> dict:
        return {}

    def check_following(self, text: str) -> bool:
        return "," not in text


class Repeats(NoComma):
    def get_instruction_args(self) -> dict:
        return {"prompt": None}

    def check_following(self, text: str) -> bool:
        assert self.arguments == {"times": 2, "prompt": "Say it"}
        return text.startswith("Say it")


def test_ifeval_strict_and_loose(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rules, "instructions", lambda: {"comma": NoComma, "repeat": Repeats})
    more = {"instruction_id_list": ["comma", "repeat"], "kwargs": [{"times": None}, {"times": 2, "words": None}]}
    # the first line breaks both; without it, and without asterisks, the rest follows both
    found = rules.follows("Well, now:\n**Say it** loud", "Say it", more)
    assert found == {
        "ifeval_strict_prompt": 0, "ifeval_loose_prompt": 1, "ifeval_strict": 0, "ifeval_loose": 2, "ifeval_total": 2
    }  # fmt: skip
    assert rules.follows("Say it", "Say it", more)["ifeval_strict_prompt"] == 1
    assert rules.follows("", "Say it", more)["ifeval_loose"] == 0


def test_ifeval_by_its_package():
    """Google's checks themselves, where they are installed (extra `ifeval`)."""
    pytest.importorskip("if_verifiable")
    more = {
        "instruction_id_list": ["punctuation:no_comma", "keywords:existence", "length_constraints:number_words"],
        "kwargs": [{}, {"keywords": ["whale"], "num_words": None}, {"relation": "at least", "num_words": 4}],
    }
    found = rules.follows("The *whale*, it sings\nloud and long", "?", more)
    # strictly all but the comma, which is gone without the first line
    assert (found["ifeval_strict"], found["ifeval_loose"], found["ifeval_total"]) == (2, 3, 3)
    assert (found["ifeval_strict_prompt"], found["ifeval_loose_prompt"]) == (0, 1)


def test_ifeval_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    rules.instructions.cache_clear()
    monkeypatch.setitem(sys.modules, "if_verifiable", None)
    monkeypatch.setitem(sys.modules, "if_verifiable.ifeval", None)
    with pytest.raises(ImportError, match=r"pip install 'speechzoo\[ifeval\]'"):
        rules.instructions()
