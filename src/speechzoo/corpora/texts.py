"""Text instructions: their layouts read, and what cannot be spoken left out, as the two papers describe it.

LLaSM (arXiv 2308.15930, section 3.2) drops conversations that do not suit speech (code, many symbols, URLs, other
unreadable text) and answers of little information. LLaMA-Omni (2409.06666, section 3) takes first rounds and has them
rewritten; we leave out before that what no rewriting makes speakable. The papers give no patterns and no limits of
length: those here are ours.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import regex

from speechzoo.corpora.stage import Broken, Item
from speechzoo.corpora.tables import rows
from speechzoo.data.records import labels_of
from speechzoo.metrics.normalise import WORDS

Turns = list[list[str]]
"""Rounds: a question and its answer each."""

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}

CODE = regex.compile(
    r"```|^\s*(?:def|class) \w+.*:\s*$|^\s*#include\b|^\s*(?:import [\w.]+|from [\w.]+ import .+);?\s*$"
    r"|</?[a-z][\w-]*[^<>]*>|\b(?:public|private) (?:static \w+|class\b|void\b|int\b)|\bSELECT\b.+\bFROM\b"
    r"|`[^`\n]+`|\bprint\(|\b\w+\(\)|\b\w+\.\w+\(|\{\s*$|\);\s*$",
    regex.MULTILINE,
)
FORMULA = regex.compile(
    r"\\(?:frac|sum|int|sqrt|begin|cdot|alpha|beta|times|left)\b|\$[^$\n]*[\\^_=][^$\n]*\$|\\[(\[]|\w\s?\^\s?\{?\w"
    r"|[²³√∑∫≤≥≠±∞∂π]|(?<![\w.])[a-zA-Z]\s*=\s*[-\d(a-z]|\b\d+\s*[*×÷]\s*\d+"
)
URL = regex.compile(
    r"https?://|\bwww\.|\b[\w.-]+@[\w-]+\.\w+|\b[\w-]+\.(?:com|org|net|edu|gov|io|cn)\b", regex.IGNORECASE
)
LOW = regex.compile(
    r"^\W*(?:i'?m sorry|i am sorry|sorry,|i apologi[sz]e|as an? (?:ai|language model|artificial)"
    r"|i(?: can(?:not|'t|’t)| am unable| don'?t (?:know|have access))|n/?a\b|<?no ?(?:in|out)put>?|none\b"
    r"|(?:ok(?:ay)?|sure|yes|no|thanks?|done)\W*$|对不起|抱歉|很抱歉|作为一[个款种]?(?:ai|人工智能|语言模型)"
    r"|我(?:无法|不能|不知道)|(?:好的|可以|是的|不是)\W*$)",
    regex.IGNORECASE,
)
SIGNS = frozenset("#*@\\/_{}[]")
LISTED = regex.compile(r"^\s*(?:[-*•]|\d+[.)])\s+", regex.MULTILINE)
READABLE = regex.compile(r"[\p{Latin}\p{Han}\p{Nd}\p{M}]")


def words(text: str) -> int:
    """Words; characters where a script has no blanks."""
    return len(WORDS.findall(text))


def _symbols(text: str) -> bool:
    plain = LISTED.sub("", text)
    kinds = [(unicodedata.category(c), c) for c in plain]
    strange = sum((kind[0] == "S" and kind != "Sc") or c in SIGNS for kind, c in kinds)
    return strange > max(2, 0.03 * len(plain))


def _unreadable(text: str) -> bool:
    if any(c == "�" or (unicodedata.category(c) in ("Cc", "Co", "Cs") and c not in "\n\r\t") for c in text):
        return True
    letters = [c for c in text if c.isalpha()]
    return sum(READABLE.match(c) is None for c in letters) > 0.1 * max(1, len(letters))


UNSPEAKABLE: dict[str, Callable[[str], bool]] = {
    "code": lambda text: CODE.search(text) is not None,
    "formula": lambda text: FORMULA.search(text) is not None,
    "URL or address": lambda text: URL.search(text) is not None,
    "unreadable characters": _unreadable,
    "many symbols": _symbols,
}


@dataclass(frozen=True)
class Style:
    """How a paper makes its data.

    Attributes:
        rounds: kept of a conversation; 0 keeps all.
        rules: of `UNSPEAKABLE`, for every text of the rounds kept.
        low_information: a conversation ends before the first answer of little information.
        rewritten, spoken: whether an LLM rewrites it, and whether answers are spoken too.
        question_words, answer_words: the longest.
    """

    rounds: int
    rules: tuple[str, ...]
    low_information: bool
    rewritten: bool
    spoken: bool
    question_words: int
    answer_words: int


# 80 words are about 30 s of speech, all that Whisper hears. LLaMA-Omni's answers are written anew, LLaSM's are kept.
STYLES = {
    "llama_omni": Style(1, tuple(UNSPEAKABLE)[:4], False, True, True, 80, 1000),
    "llasm": Style(0, tuple(UNSPEAKABLE), True, False, False, 80, 500),
}


def instructions(names: Iterable[str], limit: int | None = None) -> Iterator[Item]:
    """Conversations of files and data sets (see `tables.rows`), with values `{turns, source}`.

    Layouts: Alpaca {instruction, input, output}; ShareGPT {conversations: [{from, value}]}; UltraChat {data: [text,
    ...]}; chats {messages: [{role, content}]}.

    Args:
        limit: the first so many of each, as LLaMA-Omni takes 50,000 and 150,000; `NAME#LIMIT` limits one.
    """
    number, names = 0, list(names)
    sources = told_apart([given.partition("#")[0] for given in names])
    for given, source in zip(names, sources, strict=True):
        name, _, most = given.partition("#")
        if most and not (most.isdecimal() and int(most)):
            raise ValueError(f"{given}: after # comes how many of its records to take")
        last = int(most) if most else limit
        for place, row in rows(name):
            if last is not None and place >= last:
                break
            key = row.get("id", row.get("prompt_id")) if isinstance(row, dict) else None
            identity = f"{source}-{key}" if key is not None else f"{source}-{place}"
            if isinstance(row, Broken):
                identity = f"{source}-#{place}"  # apart from ids that records bring
            try:
                value: dict[str, Any] | Broken = (
                    {"turns": _turns(row), "source": source} if isinstance(row, dict) else row
                )
            except Broken as error:
                value = error
            yield Item(number, identity, value)
            number += 1


def told_apart(names: Sequence[str]) -> list[str]:
    """Short names of files and data sets: their stems, those that are alike with as much of their paths as it takes."""
    stems = [Path(name).stem for name in names]
    return [
        stem if stems.count(stem) == 1 else label
        for stem, label in zip(stems, labels_of([str(Path(name).absolute()) for name in names]), strict=True)
    ]


def _turns(row: dict[str, Any]) -> Turns:
    if "instruction" in row and "output" in row:
        parts = [str(row[key]).strip() for key in ("instruction", "input") if row.get(key)]
        said = [("user", "\n".join(parts)), ("assistant", _text(row["output"]))]
    elif isinstance(row.get("data"), list):
        said = [(("user", "assistant")[n % 2], _text(text)) for n, text in enumerate(row["data"])]
    elif isinstance(chat := row.get("conversations") or row.get("messages"), list):
        said = [_said(entry) for entry in chat]
    else:
        keys = ", ".join(list(row)[:6])
        raise Broken("unknown layout", f"keys {keys}; known are Alpaca's, ShareGPT's, UltraChat's and chat messages")
    said = [(role, text.strip()) for role, text in said if role != "system"]
    turns = []
    for (asks, question), (answers, answer) in zip(said[::2], said[1::2], strict=False):
        if (asks, answers) != ("user", "assistant"):
            raise Broken("roles out of turn", f"{asks} is followed by {answers}")
        turns.append([question, answer])
    if not turns:
        raise Broken("no round of question and answer")
    return turns


def _text(value: Any) -> str:
    """Of a cell; null is no text, and not the word None."""
    return "" if value is None else str(value)


def _said(entry: Any) -> tuple[str, str]:
    if not isinstance(entry, dict):
        raise Broken("unknown layout", "a turn is not an object")
    who, text = entry.get("from", entry.get("role")), entry.get("value", entry.get("content"))
    role = ROLES.get(who) if isinstance(who, str) else None
    if role is None or not isinstance(text, str):
        raise Broken("unknown layout", f"a turn from {who!r} with {'no' if text is None else 'a strange'} text")
    return role, text


def suitable(turns: Turns, style: Style) -> Turns:
    """What of a conversation can be spoken.

    Raises:
        Broken: nothing, with the rule that says so.
    """
    turns = turns[: style.rounds or None]
    if style.low_information:
        end = next((n for n, (_, answer) in enumerate(turns) if LOW.search(answer)), len(turns))
        if not end:
            raise Broken("answer of little information", turns[0][1][:80])
        turns = turns[:end]
    for question, answer in turns:
        for what, text, most in (("question", question, style.question_words), ("answer", answer, style.answer_words)):
            if not text:
                raise Broken(f"empty {what}")
            for rule in style.rules:
                if UNSPEAKABLE[rule](text):
                    raise Broken(rule, f"in the {what} {text[:80]!r}")
            if words(text) > most:
                raise Broken(f"{what} too long", f"{words(text)} words, {most} are taken")
    return turns


def language_of(text: str) -> str:
    """`zh` where Chinese characters are more than Latin letters, else `en`."""
    return "zh" if len(regex.findall(r"\p{Han}", text)) > len(regex.findall(r"\p{Latin}", text)) / 4 else "en"
