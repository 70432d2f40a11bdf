"""The shape of one record: which keys, roles, parts and units are right, and what to say where they are not."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

from speechzoo.text import lone_surrogate

RECORD = ("id", "messages")
SOUND = ("audio", "audios")
MESSAGE = ("role", "content")
ANSWER = (*MESSAGE, "units", "audio")
PARTS = {"audio": ("type", "path", "transcript"), "text": ("type", "text")}
ROLES = ("system", "user", "assistant")

Found = Iterator[tuple[str, str]]
"""Pairs of a problem and what to do about it."""


def check_messages(record: dict[str, Any], answer: bool = True) -> Found:
    """Everything that is wrong with the form of a record; reads no files. Further keys of it are not looked at.

    Args:
        answer: the conversation has to end with an answer.
    """
    yield from _id(record)
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "no messages", 'give "messages": [{"role": "user", "content": ...}, {"role": "assistant", ...}]'
        return
    for index, message in enumerate(messages, start=1):
        where = f"message {index}"
        if not isinstance(message, dict):
            yield f"{where} is not an object", 'write {"role": ..., "content": ...}'
            continue
        role = message.get("role")
        if not isinstance(role, str) or role not in ROLES:
            problem = "has no role" if role is None else f"has the unknown role {role!r}"
            yield f"{where} {problem}", _nearest(role, ROLES)
            continue
        yield from _unknown(message, ANSWER if role == "assistant" else MESSAGE, f"{where} ({role})")
        yield from _content(message.get("content"), role, where)
        if role == "assistant":
            yield from _spoken(message, where)
    yield from _order([m.get("role") if isinstance(m, dict) else None for m in messages], answer)


def check_form(messages: list[Any], name: str) -> None:
    """Refuse a conversation in memory, whose sounds may be arrays, that is none.

    Raises:
        ValueError: naming the conversation and its first message that is no good.
    """
    if not any(isinstance(message, dict) and message.get("role") == "user" for message in messages):
        raise ValueError(f"{name}: there is no user message")
    for place, message in enumerate(messages, start=1):
        content = message.get("content") if isinstance(message, dict) and message.get("role") in ROLES else None
        if not isinstance(content, str) and not (isinstance(content, list) and all(map(_is_part, content))):
            form = '{"role": ..., "content": a text, or a list of text parts and of audio parts with path or array}'
            raise ValueError(f"{name}: message {place} is not of the form {form}")


def _is_part(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "audio":
        return part.get("array") is not None or bool(part.get("path"))
    return kind == "text" and isinstance(part.get("text"), str)


def unread_keys(record: dict[str, Any]) -> list[str]:
    """Keys of a record that nothing reads, with what they may have been meant for."""
    found = []
    for key in record:
        if key not in RECORD and key not in SOUND:
            close = get_close_matches(key.lower(), (*RECORD, *SOUND), n=1, cutoff=0.75)
            found.append(ascii(key) + (f" (did you mean {close[0]!r}?)" if close else ""))
    return found


def _id(record: dict[str, Any]) -> Found:
    given = record.get("id", 0)
    if type(given) is int:
        return
    if not isinstance(given, str):
        yield f"id is {given!r}", "ids are text"
    elif not given.strip():
        yield f"id is {given!r}", "give the record an id, or leave the key out"
    elif lone_surrogate(given):
        yield f"id is {given!r}, which holds half of a character", "repair the text where it was cut"


def _unknown(given: dict[str, Any], known: tuple[str, ...], where: str) -> Found:
    for key in given:
        if key not in known:
            yield f"{where} has the unknown key {key!r}", _nearest(key, known)


def _nearest(word: Any, known: tuple[str, ...]) -> str:
    close = get_close_matches(word.lower(), known, n=1, cutoff=0.5) if isinstance(word, str) else []
    return f"did you mean {close[0]!r}?" if close else f"use one of {', '.join(known)}"


def _content(content: Any, role: str, where: str) -> Found:
    """A text, or a list of audio and text parts that is not empty as a whole."""
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list):
        yield f"{where} ({role}) has no content", "content is a text or a list of audio and text parts"
        return
    filled = False
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str) or kind not in PARTS:
            yield f"{where} has a part of the unknown type {kind!r}", _nearest(kind, tuple(PARTS))
            return
        yield from _unknown(part, PARTS[kind], f"the {kind} part of {where}")
        value = part.get(PARTS[kind][1])
        if not isinstance(value, str) or (kind == "audio" and not value):
            yield f"{where} has a part of type {kind} without {PARTS[kind][1]}", f"add {PARTS[kind][1]!r} to the part"
            return
        if broken := lone_surrogate(value):
            yield f"{where} holds {broken}, half of a character", "repair the text where it was cut"
            return
        said = part.get("transcript", "words")
        if not isinstance(said, str) or not said.strip() or lone_surrogate(said):
            yield f"{where} has a transcript that is no text", "write what the clip says, or leave the key out"
        if kind == "audio" and role != "user":
            beside = 'give the sound of an answer as "audio": path beside its content'
            hint = beside if role == "assistant" else "write it as text"
            yield f"{where}: the content of a turn of the {role} cannot hold audio", hint
        filled = filled or bool(value.strip())
    if not filled:
        what = "answer" if role == "assistant" else "content"
        yield f"{where} ({role}) has an empty {what}", "remove the record, or fill it in"


def _spoken(message: dict[str, Any], where: str) -> Found:
    sound = message.get("audio", "path")
    if not isinstance(sound, str) or not sound or lone_surrogate(sound):
        yield f"{where} has an audio that is not a path", "give a path relative to the manifest"
    if "units" not in message:
        return
    units = message["units"]
    if not isinstance(units, list) or not all(type(unit) is int for unit in units):
        yield f"{where} has units that are not a list of whole numbers", 'write "units": [3, 1, 4]'
    elif not units:
        yield f"{where} has no units", 'leave "units" out for an answer that is not spoken'
    elif min(units) < 0:
        yield f"{where} has the negative unit {min(units)}", "units are numbered from 0"
    else:
        repeat = next((i for i in range(1, len(units)) if units[i] == units[i - 1]), None)
        if repeat is not None:
            yield (
                f"{where} has equal neighbours in its units ({units[repeat]} at positions {repeat - 1} and {repeat})",
                "collapse them: [unit for unit, _ in itertools.groupby(units)]",
            )


def _order(roles: list[str | None], answer: bool) -> Found:
    """`system`? then `user`, `assistant` in turn. Silent where a role is wrong in itself: that is said already."""
    if any(not isinstance(role, str) or role not in ROLES for role in roles):
        return
    turns = roles[1:] if roles[0] == "system" else roles
    for index, role in enumerate(turns):
        expected = ("user", "assistant")[index % 2]
        if role != expected:
            position = index + 1 + len(roles) - len(turns)
            hint = "the system message comes first, then user and assistant take turns"
            yield f"message {position} is from the {role} where the {expected} is due", hint
            return
    if not turns:
        yield "there is no user message", "add a user and an assistant message"
    elif answer and turns[-1] != "assistant":
        yield "the conversation does not end with an answer", "add the assistant message the model has to learn"
