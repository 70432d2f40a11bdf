"""What a message says: its text, with the places of its clips."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

CLIP = "\ufffc<audio>\ufffc"
"""Stands for a clip inside a rendered template; the object-replacement characters keep it out of ordinary text."""

MARK = re.compile("\ufffc(<audio>|[0-9]+)\ufffc")
"""A clip, or the number of a special token that is text, inside a rendered template."""

Message = dict[str, Any]


class ContentError(ValueError):
    """A conversation that cannot be told apart from what its template writes around it, or that is no text."""


def flatten(content: str | Sequence[dict[str, Any]]) -> str:
    """Content of a message as text, with `CLIP` where a clip belongs.

    Raises:
        ContentError: if the text holds half of a character (a lone surrogate) or what stands for a clip here.
    """
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    texts = "\0".join(part["text"] for part in parts if part["type"] != "audio")
    if broken := lone_surrogate(texts):
        raise ContentError(f"a text holds {broken}, half of a character: repair it where it was cut")
    if found := MARK.search(texts):
        raise ContentError(f"a text holds {found[0]!r}, which stands for a clip here: take it out")
    return "".join(CLIP if part["type"] == "audio" else part["text"] for part in parts)


def lone_surrogate(text: str) -> str | None:
    """The first character of a text that no encoding can hold, as `'\\ud83d'`; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return repr(text[error.start])
    return None
