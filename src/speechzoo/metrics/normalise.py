"""What two texts are reduced to before they are compared: as speech that was written down, or as answers.

Speech (word and character error rates) follows the field's standard, Whisper's normalisers: the English one where all
letters of the reference are Latin, the basic one for other scripts. Answers (exact match, ROUGE-L) keep what changes an
answer and what a recogniser would leave out: signs, operators, currencies, brackets, fillers, accents.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import regex

Normaliser = Callable[[str], str]

REMEMBERED = 16384  # texts: a report scores the same few hundred answers in a hundred groups, and this is its dear part

# Scripts written without blanks between words; Whisper's paper (appendix C) splits their languages into characters too.
UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
ONE = regex.compile(rf"(?=[{UNSPACED}])\X")
WORDS = regex.compile(rf"(?=[{UNSPACED}])\X|(?:(?![{UNSPACED}])\S)+")
OTHER_LETTERS = regex.compile(r"[^\P{L}\p{Latin}\p{Common}]")

ENGLISH = "Whisper's English normaliser"
OTHERS = (
    "Whisper's basic normaliser with vowel signs kept; in scripts without blanks (Chinese, Japanese, Thai, ...) each "
    "character is a word (mixed error rate), and no blanks count for CER"
)


@lru_cache(maxsize=1)
def _english() -> Any:
    # Here and not above: importing whisper takes a second that command-line help should not pay.
    from whisper.normalizers import EnglishTextNormalizer

    return EnglishTextNormalizer()


@lru_cache(maxsize=1)
def _basic() -> Any:
    from whisper.normalizers import BasicTextNormalizer

    normaliser = BasicTextNormalizer()
    normaliser.clean = _without_symbols  # its own drops marks, which are vowels in Hindi, Tamil, Thai, ...
    return normaliser


def _without_symbols(text: str) -> str:
    kinds = ((unicodedata.category(c), c) for c in unicodedata.normalize("NFKC", text))
    return "".join("" if kind == "Cf" else " " if kind[0] in "SP" else c for kind, c in kinds)


def normalise_english(text: str) -> str:
    """Whisper's English normalisation: lower case, no punctuation, numbers as digits, British to American spelling.

    Source: `whisper.normalizers.EnglishTextNormalizer` (appendix C of the Whisper paper), with runs of blanks joined.
    It is the field's standard for recognisers, so its habits are kept: "six plus nine" becomes "6 +9", two words;
    fillers, brackets and signs are dropped.
    """
    return " ".join(_english()(text).split())


def is_english(text: str) -> bool:
    """Whether all letters are Latin, so that Whisper's English normaliser is the one to use."""
    return OTHER_LETTERS.search(text) is None


def speech_words(text: str, reference: str | None = None) -> list[str]:
    """The words of speech that was written down, for error rates.

    Characters of scripts without blanks are words of their own, as in the mixed error rate of Chinese and English.

    Args:
        reference: decides the normaliser for both sides; default: the text itself.
    """
    return list(_speech_words(text, is_english(text if reference is None else reference)))


@lru_cache(REMEMBERED)
def _speech_words(text: str, english: bool) -> tuple[str, ...]:
    return tuple(WORDS.findall((_english() if english else _basic())(text)))


def joined(words: list[str]) -> str:
    """Words as one text: blanks between words, none beside a character of a script without blanks."""
    text, spaced = "", False
    for word in words:
        alone = ONE.match(word) is not None
        text += f" {word}" if spaced and not alone else word
        spaced = not alone
    return text


# -- answers ---------------------------------------------------------------------------------------------------------

DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015"
SUPER = regex.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻]+")
SIGN = regex.compile(r"\b(minus|negative|plus|positive)\s+(?=(?:([^\W\d_]+)|[.$¢€£¥]?\d))")
# A hyphen means something before a number (a sign, a range, a subtraction) and where it begins a word; it means
# nothing between the parts of a word ("well-known", "covid-19").
HYPHEN = regex.compile(
    rf"(?<=[{UNSPACED}])-(?!-)|(?<!\p{{L}}{{2}})-(?=\s*[.$¢€£¥(]*\d)"
    r"|(?<![^\s(\[{<=>+*/^,;:])-(?=[\p{L}(\[])|(?<=\b\p{L}\s?)-(?=\s?\p{L}\b)"
)
LONG_DASH = regex.compile(r"[\u2014\u2015]+(?!\s?\d)")
TIMES = regex.compile(r"(?<=[\w)\]])(?:\*|\s\*\s)(?=[\w(\[-])")
COLON = regex.compile(r"(?<=\d):(?=\d)")
SHARP = regex.compile(r"(?<=\w)#|#(?=\w)")
THOUSANDS = regex.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
KEPT = "()[]{}/\\%‰&@<>=+|~^°"
MINUS, STAR, RATIO, HASH = "\ue000", "\ue001", "\ue002", "\ue003"  # private characters: those that mean something
MEANT = {MINUS: "-", STAR: "*", RATIO: ":", HASH: "#"}
PHRASE = regex.compile(r"[\p{L}\p{M}\p{N}.$¢€£%'\s]+|.", regex.DOTALL)
TOKEN = regex.compile(
    rf"(?=[{UNSPACED}])\X|\d*\.?\d+|(?:(?![{UNSPACED}])[\p{{L}}\p{{M}}])+(?:'(?![{UNSPACED}])[\p{{L}}\p{{M}}]+)*"
    r"|\p{N}|[%$¢€£]"
)


@lru_cache(REMEMBERED)
def answer_tokens(text: str) -> tuple[str, ...]:
    """An answer as the tokens that decide whether two answers are the same.

    Case, width (NFKC), blanks, sentence punctuation, hyphens inside words, and the ways to write a number, a
    contraction or an English word (by the number and spelling normalisers of Whisper's) make no difference. Signs,
    operators, brackets and what is in them, decimal points, percent, currencies, accents and fillers do. Characters of
    scripts without blanks are tokens of their own. The result is the same whatever it is compared with.
    """
    english = _english()
    text = LONG_DASH.sub(" ", text)
    text = SUPER.sub(lambda found: f"^{found[0]}", text)
    text = "".join(f" {c}" if unicodedata.decomposition(c).startswith("<fraction>") else c for c in text)
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    text = text.translate(
        {0x2212: MINUS, 0x2044: "/", 0x2019: "'", 0x2018: "'", **dict.fromkeys(map(ord, DASHES), "-")}
    )
    text = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc") or c.isspace())
    for pattern, replacement in english.replacers.items():
        text = regex.sub(pattern, replacement, text)
    text = THOUSANDS.sub(lambda found: found[0].replace(",", ""), text)
    text = SIGN.sub(_sign, text)
    for mark, pattern in ((MINUS, HYPHEN), (STAR, TIMES), (RATIO, COLON), (HASH, SHARP)):
        text = pattern.sub(mark, text)
    # Between letters a hyphen only joins the parts of a word, as in "twenty-one"; other punctuation ends a phrase, and
    # numbers are read within one: "one, two" is not 12.
    text = regex.sub(r"(?<=\p{L})-(?=\p{L})", " ", text)
    tokens: list[str] = []
    for phrase in PHRASE.findall(text):
        if phrase in MEANT:
            tokens.append(MEANT[phrase])
        elif len(phrase) == 1 and (phrase in KEPT or unicodedata.category(phrase) in ("Sm", "So", "Sc")):
            tokens.append(phrase)
        else:
            tokens += TOKEN.findall(_numbers(phrase))
    return tuple(tokens)


def _sign(found: Any) -> str:
    """A spoken sign before a number. By itself, since Whisper's normaliser loses it before currencies."""
    numbers = _english().standardize_numbers
    number = {*numbers.zeros, *numbers.ones, *numbers.tens, *numbers.multipliers, "point"} - {"o", "oh"}
    if found[2] is not None and found[2] not in number:
        return str(found[0])
    return MINUS if found[1] in ("minus", "negative") else "+"


def _numbers(phrase: str) -> str:
    """English number words as digits, American spelling."""
    english = _english()
    phrase = regex.sub(r"\.(?!\d)", " ", phrase)
    phrase = english.standardize_spellings(english.standardize_numbers(phrase))
    digits: str = regex.sub(r"\bone(s?)\b", r"1\1", phrase)  # it writes 1 as a word, also in 1.5
    return digits
