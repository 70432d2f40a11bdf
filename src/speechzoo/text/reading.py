"""How numbers and signs are read aloud, for voices that know words alone."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

_SIGNS = {"+": "plus", "=": "equals", "×": "times", "÷": "divided by", "%": "percent", "&": "and"}
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
# A hyphen is a minus before a number that it touches, or with a blank on either side; "2024-26" is neither.
_MINUS = re.compile(r"(?<![\w-])[-−](?=\d)|(?<=\d)\s[-−]\s(?=\d)")
_NUMBER = re.compile(r"(?<!\w)(?:0|[1-9]\d*)(?:,\d{3})*(?:\.\d+)?(?:st|nd|rd|th)?(?!\w)")


def in_words(text: str) -> str:
    """The text with its numbers and signs as words: "9 + 4 is 13" becomes "nine plus four is thirteen".

    Words and punctuation stay as they are, and so does what is read in more than one way ("$", "/", "007") and numbers
    too long to have a name (more than 36 digits).
    """
    said = _MINUS.sub(" minus ", text)
    said = _SIGN.sub(lambda found: f" {_SIGNS[found[0]]} ", said)
    said = _NUMBER.sub(lambda found: _number(found[0]), said)
    if said == text:
        return text
    return re.sub(r" +(?=[.,;:?!])|^ +| +$", "", re.sub(r"  +", " ", said))


def _number(digits: str) -> str:
    import inflect  # a quarter of a second

    try:
        return name_of(digits, andword="").replace("-", " ")
    except inflect.NumOutOfRangeError:
        return digits


def name_of(number: int | str, **options: Any) -> str:
    """A number in English words: 21,005 is "twenty-one thousand and five".

    Args:
        options: of inflect's `number_to_words`.
    """
    return str(_engine().number_to_words(number, **options)).replace(",", "")


@cache
def _engine() -> Any:
    import inflect

    return inflect.engine()
