"""Numbers and signs as words."""

import pytest

from speechzoo.text.reading import in_words, name_of


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("9 + 4 is 13.", "nine plus four is thirteen."),
        ("Before 11 comes 10.", "Before eleven comes ten."),
        ("9 - 4 = 5", "nine minus four equals five"),
        ("It is -5 degrees, or 1.5 %.", "It is minus five degrees, or one point five percent."),
        ("The 21st of 2,026", "The twenty first of two thousand twenty six"),
        ("105", "one hundred five"),
    ],
)
def test_numbers_and_signs_are_read(written: str, read: str) -> None:
    assert in_words(written) == read
    assert in_words(read) == read


@pytest.mark.parametrize(
    "text", ["", "Hello,  world .", "well-known - yes", "007", "B2B", "abc1", "a/b", "$ and €", "1" * 37]
)
def test_the_rest_stays(text: str) -> None:
    assert in_words(text) == text


@pytest.mark.parametrize(
    "number, words",
    [
        (0, "zero"),
        (13, "thirteen"),
        (40, "forty"),
        (85, "eighty-five"),
        (100, "one hundred"),
        (342, "three hundred and forty-two"),
        (1005, "one thousand and five"),
        (21_300, "twenty-one thousand three hundred"),
        (999_999, "nine hundred and ninety-nine thousand nine hundred and ninety-nine"),
    ],
)
def test_numbers_in_words(number: int, words: str) -> None:
    assert name_of(number) == words
