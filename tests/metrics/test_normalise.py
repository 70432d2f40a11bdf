"""What counts as the same answer, and what as a word, in any script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from speechzoo.metrics import CharErrorRate, ExactMatch, RougeL, WordErrorRate, normalise_english, speech_words
from speechzoo.metrics.normalise import answer_tokens, joined

SENTENCES = [
    "法国的首都是巴黎。",
    "法國的首都是巴黎。",
    "Москва — столица России.",
    "भारत की राजधानी दिल्ली है",
    "العاصمة هي باريس",
    "กรุงเทพฯ เป็นเมืองหลวงของประเทศไทย",
    "東京は日本の首都です。カタカナも。",
    "서울은 한국의 수도입니다.",
    "Η Αθήνα είναι η πρωτεύουσα.",
    "ירושלים",
    "தமிழ்நாடு",
    "ရန်ကုန်",
    "ភ្នំពេញ",
    "Zürich ist schön.",
    "x = -3",
]


def one(metric, prediction: str, reference: str) -> float:
    metric.update([prediction], [reference])
    return metric.compute().item()


def same(a: str, b: str) -> bool:
    assert one(ExactMatch(), a, b) == one(ExactMatch(), b, a)
    return one(ExactMatch(), a, b) == 1


@pytest.mark.parametrize("text", SENTENCES)
def test_identical_answers_of_any_script_are_right(text: str) -> None:
    assert one(ExactMatch(), text, text) == one(RougeL(), text, text) == 1
    assert one(WordErrorRate(), text, text) == one(CharErrorRate(), text, text) == 0
    assert one(RougeL(), "?", text) == 0


@given(st.text(max_size=30))
@example("İ")
@example("1½ – 2⁻³")
@example("five o'clock, -one")
def test_identity_and_symmetry(text: str) -> None:
    assume(any(unicodedata.category(c)[0] in "LN" for c in text))
    assert one(ExactMatch(), text, text) == 1
    assert one(RougeL(), text, text) == pytest.approx(1)


@given(st.text("0123456789.-+()<>=%$ abfivenmus一五，Дक", max_size=12), st.text("0123456789-+(五Д five", max_size=12))
def test_exact_match_and_rouge_do_not_ask_which_is_the_reference(a: str, b: str) -> None:
    assert ExactMatch().counts(a, b) == ExactMatch().counts(b, a)
    assert RougeL().counts(a, b)[0] == pytest.approx(RougeL().counts(b, a)[0])


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from(["", "$", "€"]), st.sampled_from(["", "%", " degrees", " dollars", " 度"])
)
def test_a_wrong_sign_is_a_wrong_answer(number: int, before: str, after: str) -> None:
    plain = f"{before}{number}{after}"
    for text in ("The answer is {}.", "{}", "({}, 2)", "答案是{}。"):
        right = text.format(plain)
        for sign in ("-", "−", "minus ", "negative ", "+", "±", "–"):
            wrong = text.format(sign + plain)
            assert not same(wrong, right), (wrong, right)
            assert one(RougeL(), wrong, right) < 1


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("-5", "5"),
        ("(5, 3)", "(6, 2)"),
        ("(5,3)", "(53)"),
        ("five, three", "53"),
        ("It is [north].", "It is [south]."),
        ("<yes>", "<no>"),
        ("（五）", "（六）"),
        ("【北】", "【南】"),
        ("3 > 2", "3 < 2"),
        ("a ≤ b", "a ≥ b"),
        ("mm", "uh"),
        ("Hmm.", "(laughs)"),
        ("uh", ""),
        ("!", "?"),
        ("minus five dollars", "five dollars"),
        ("minus 20 million dollars", "20 million dollars"),
        ("minus five percent", "five percent"),
        ("5 %", "5"),
        ("$5", "€5"),
        ("3.5", "35"),
        ("3,5", "35"),
        (".5", "5"),
        ("1/2", "12"),
        ("3:2", "32"),
        ("10²", "102"),
        ("1½", "11/2"),
        ("2*3", "2 3"),
        ("2 * 3", "2 + 3"),
        ("5 - 3", "5 3"),
        ("a - b", "a + b"),
        ("x = -y", "x = y"),
        ("C++", "C"),
        ("C#", "C"),
        ("5°", "5"),
        ("schön", "schon"),
        ("负五", "五"),
        ("答案是-五", "答案是五"),
        ("答案是-5度", "答案是5度"),
        ("भारत", "भरत"),
        ("が", "か"),
    ],
)
def test_other_answers(a: str, b: str) -> None:
    assert not same(a, b)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("-5", "minus five"),
        ("−5", "negative five"),
        ("5", "five"),
        ("1.5", "one point five"),
        ("1,000", "one thousand"),
        ("twenty-one", "21"),
        ("$5", "five dollars"),
        ("-$5", "minus five dollars"),
        ("5 %", "five percent"),
        ("10 - 5", "10 minus 5"),
        ("two plus three", "2 + 3"),
        ("It's", "It is"),
        ("It’s FIFTEEN!", "it is 15"),
        ("well-known", "well known"),
        ("colour", "color"),
        ("**Paris**", "Paris."),
        ("(5,3)", "( 5 , 3 )"),
        ("１２３", "123"),
        ("法国的首都是巴黎。", "法国的首都，是巴黎"),
        ("他说——好", "他说好"),
        ("Yes—no", "yes no"),
        ("x²", "x^2"),
        ("...", "…"),
        ("", "  "),
    ],
)
def test_the_same_answer_written_otherwise(a: str, b: str) -> None:
    assert same(a, b)


def test_words_of_scripts_without_blanks_are_characters() -> None:
    assert one(WordErrorRate(), "法国的首都是巴里。", "法国的首都是巴黎。") == pytest.approx(1 / 8)
    assert one(CharErrorRate(), "你好世界", "你好，世界。") == 0
    assert one(WordErrorRate(), "你好世界", "你好，世界。") == 0
    mixed = speech_words("我爱 NLP 和 deep learning，对吗？")
    assert mixed == ["我", "爱", "nlp", "和", "deep", "learning", "对", "吗"]
    assert joined(mixed) == "我爱nlp和deep learning对吗"
    assert one(WordErrorRate(), "我爱 nlp 和 deep yearning", "我爱NLP和deep learning") == pytest.approx(1 / 6)


def test_words_of_other_scripts_keep_their_vowel_signs() -> None:
    assert speech_words("भारत की राजधानी, दिल्ली!") == ["भारत", "की", "राजधानी", "दिल्ली"]
    assert one(WordErrorRate(), "भरत की", "भारत की") == 0.5
    assert one(WordErrorRate(), "Москва, столица", "Москва — столица России.") == pytest.approx(1 / 3)


@pytest.mark.parametrize("text", ["Um, it's [noise] twenty-one (laughs) colours!", "Six plus nine", "café", "-5", ""])
def test_english_error_rates_are_whispers(text: str) -> None:
    assert speech_words(text) == normalise_english(text).split()
    assert joined(speech_words(text)) == normalise_english(text)


def test_the_reference_decides_the_normaliser_for_both() -> None:
    assert one(WordErrorRate(), "it's 15", "it is fifteen") == 0
    assert one(CharErrorRate(), "it's 五", "it is 五") > 0  # no English contractions in a Chinese reference
    assert speech_words("it's", reference="五") == ["it", "s"]


def test_tokens_of_answers() -> None:
    assert answer_tokens("The answer is minus five dollars (about €-4.60).") == tuple(
        "the answer is - $ 5 ( about € - 4.60 )".split()
    )
