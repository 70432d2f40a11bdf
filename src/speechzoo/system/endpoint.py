"""An OpenAI-compatible endpoint: chat completions asked for with patience, and replies that are looked at."""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""Statuses that may be gone in a moment."""
REFUSED = (401, 403, 404)
"""Statuses that every further request would get too: a wrong key, a wrong name."""
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for


class UnreachableError(OSError):
    """Nobody answered, however often it was asked: the rest of the work can go on without."""


class ReplyError(ValueError):
    """There was an answer, but not one that can be used."""


def api_key(url: str, variable: str) -> str | None:
    """The key for an endpoint: `$variable`; `$OPENAI_API_KEY` goes to OpenAI's own host and to nobody else."""
    own = os.environ.get(variable)
    return own or (os.environ.get("OPENAI_API_KEY") if urlsplit(url).hostname == "api.openai.com" else None)


@dataclass
class Endpoint:
    """Chat completions of one model at one address; may be used by several threads.

    Args:
        url: base address, such as `http://localhost:8000/v1`.
        model: name that the server knows it by.
        key: sent as bearer token, and shown nowhere.
        timeout: seconds for one try.
        tries: of one request, before it is given up.
        first_wait: seconds before the second try; each further wait is twice as long, up to a minute.

    Raises:
        ValueError: if the address is none of http or https.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.url}: not the address of an endpoint, such as http://localhost:8000/v1")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.Client(base_url=self.url.rstrip("/"), headers=headers, timeout=self.timeout)

    def chat(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        """The `message` of the first choice.

        Args:
            options: of the request, such as `temperature`, `seed`, `max_tokens`.

        Raises:
            UnreachableError: no connection, timeouts, or statuses of `AGAIN` at each try; or one of `REFUSED`.
            ReplyError: another status, or a body that is no chat completion.
        """
        wait, why = self.first_wait, ""
        for left in reversed(range(self.tries)):
            asked = 0.0
            try:
                reply = self._client.post(
                    "/chat/completions", json={"model": self.model, "messages": messages, **options}
                )
            except httpx.HTTPError as error:
                why = f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                if reply.status_code not in AGAIN:
                    return self._message(reply)
                why, asked = f"status {reply.status_code}", _seconds(reply.headers.get("retry-after"))
            if left:
                time.sleep(min(LONGEST_WAIT, max(asked, wait * random.uniform(0.5, 1.0))))
                wait *= 2
        raise UnreachableError(f"{self.url}: no answer after {self.tries} tries ({why})")

    def _message(self, reply: httpx.Response) -> dict[str, Any]:
        if not reply.is_success:
            kind = UnreachableError if reply.status_code in REFUSED else ReplyError
            raise kind(f"{self.url}: status {reply.status_code} for model {self.model}: {_brief(reply.text)}")
        try:
            message = reply.json()["choices"][0]["message"]
        except (ValueError, KeyError, IndexError, TypeError):
            message = None
        if not isinstance(message, dict):
            raise ReplyError(f"{self.url}: not a chat completion: {_brief(reply.text)}")
        return message


def text_of(message: dict[str, Any]) -> str:
    """The text of a message: its content, or the transcript of its sound.

    Raises:
        ReplyError: if it has neither.
    """
    content, sound = message.get("content"), message.get("audio")
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
    if not content and isinstance(sound, dict):
        content = sound.get("transcript")
    if not isinstance(content, str):
        raise ReplyError("the message holds no text")
    return content


def _seconds(header: str | None) -> float:
    """Of `Retry-After`; 0 for a date or nothing."""
    return float(header) if header is not None and header.strip().isdigit() else 0.0


def _brief(text: str) -> str:
    return " ".join(text.split())[:200] or "an empty body"
