"""A client of OpenAI-compatible endpoints: chat and speech, asked for with patience, and replies that are looked at."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx

AGAIN = (408, 409, 425, 429)
"""Of the client's errors those that may be gone in a moment; so may all of the server's (500 and above)."""
REFUSED = (401, 403, 404)
"""Statuses that every further request would get too: a wrong key, a wrong name."""

T = TypeVar("T")


class EndpointError(ValueError):
    """An endpoint did not give what was asked for.

    Attributes:
        transient: it may at another time, or for another request; otherwise the address, the key or the model is wrong.
    """

    def __init__(self, text: str, transient: bool = True) -> None:
        super().__init__(text)
        self.transient = transient


class UnreachableError(EndpointError):
    """Nobody answers, or refuses to: the rest of the work can go on without."""


class ReplyError(EndpointError):
    """There was an answer, but not one that can be used."""


@dataclass(frozen=True)
class Chat:
    """A reply: its message, why it ended ("stop", "length"), and the tokens that the endpoint counted, if it told."""

    message: dict[str, Any]
    ended: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    @property
    def text(self) -> str:
        """The content, or the transcript of the sound.

        Raises:
            ReplyError: if there is neither.
        """
        content, sound = self.message.get("content"), self.message.get("audio")
        if isinstance(content, list):
            content = "".join(part.get("text", "") for part in content if isinstance(part, dict))
        if not content and isinstance(sound, dict):
            content = sound.get("transcript")
        if not isinstance(content, str):
            raise ReplyError("the message holds no text")
        return content


def api_key(url: str, variable: str = "SPEECHZOO_ENDPOINT_KEY") -> str | None:
    """The key for an endpoint: `$variable`; `$OPENAI_API_KEY` goes to OpenAI's own host and to nobody else."""
    own = os.environ.get(variable)
    return own or (os.environ.get("OPENAI_API_KEY") if urlsplit(url).hostname == "api.openai.com" else None)


@dataclass
class Endpoint:
    """One model behind an address; may be used by several threads.

    Args:
        url: up to the version, as `http://localhost:8000/v1`.
        model: its name there.
        key: sent as bearer token, and shown nowhere; space around it is left out.
        timeout: seconds for one try.
        tries: of one request: after refusals that may pass (408, 409, 425, 429, 5xx), broken connections and replies
            that are none.
        first_wait, longest: seconds before the second try, and the most before any; each wait is twice as long, by
            chance a little less or more. `Retry-After` is obeyed.

    Raises:
        ValueError: if the address is none of http or https, or the key cannot be sent.
    """

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 120.0
    tries: int = 6
    first_wait: float = 1.0
    longest: float = 60.0

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise ValueError(f"{self.url}: not the address of an endpoint, such as http://localhost:8000/v1")
        self.key = self.key.strip() if self.key else None  # of a file, with the end of its line
        if self.key and not (self.key.isascii() and self.key.isprintable()):
            raise ValueError(f"{self.url}: the key for it holds characters that no key has: copy it again")
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        self._client = httpx.Client(base_url=self.url.rstrip("/"), headers=headers, timeout=self.timeout)

    def chat(self, messages: Sequence[dict[str, Any]], **options: Any) -> Chat:
        """A reply to messages.

        Args:
            options: further keys of the request, such as `temperature`, `seed`, `max_tokens`.

        Raises:
            UnreachableError: no connection, timeouts or busy servers at each try; or a status of `REFUSED`.
            ReplyError: another status, or bodies that are no chat completion.
        """
        return self._ask("chat/completions", {"model": self.model, "messages": list(messages), **options}, _chat)

    def speech(self, text: str, voice: str, response_format: str = "wav", **options: Any) -> bytes:
        """A sound file of a spoken text.

        Raises:
            UnreachableError, ReplyError: as for `chat`.
        """
        asked = {"model": self.model, "input": text, "voice": voice, "response_format": response_format, **options}
        return self._ask("audio/speech", asked, _sound)

    def _ask(self, path: str, asked: dict[str, Any], read: Callable[[httpx.Response], T]) -> T:
        url, kind, why = f"{self.url.rstrip('/')}/{path}", UnreachableError, ""
        for number in range(self.tries):
            wanted = 0.0
            try:
                reply = self._client.post(path, json=asked)
            except httpx.HTTPError as error:
                kind, why = UnreachableError, f"{type(error).__name__}: {error}".rstrip(": ")
            else:
                status = reply.status_code
                if reply.is_success:
                    try:
                        return read(reply)
                    except ReplyError as error:
                        kind, why = ReplyError, str(error)  # type: ignore[assignment]
                else:
                    why = f"status {status} for model {self.model}: {_brief(reply.text)}"
                    if status in REFUSED:
                        raise UnreachableError(f"{url}: {why}", transient=False)
                    if status not in AGAIN and status < 500:
                        raise ReplyError(f"{url}: {why}")
                    kind, wanted = UnreachableError, _seconds(reply.headers.get("retry-after"))
            if number + 1 < self.tries:
                wait = self.first_wait * 2.0**number * random.uniform(0.75, 1.25)
                time.sleep(min(self.longest, max(wanted, wait)))
        raise kind(f"{url}: {why}, {self.tries} times")


def _chat(reply: httpx.Response) -> Chat:
    try:
        body = reply.json()
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        if not isinstance(message, dict):
            raise TypeError
        tokens = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Chat(message, choice.get("finish_reason") or "", *tokens)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ReplyError(f"not a chat completion: {_brief(reply.text)}") from None


def _sound(reply: httpx.Response) -> bytes:
    kind = reply.headers.get("content-type", "")
    if not reply.content or kind.startswith(("application/json", "text/")):
        raise ReplyError(f"a reply that is no sound ({kind}, {_brief(reply.text)})")
    return reply.content


def _seconds(header: str | None) -> float:
    """Of `Retry-After`; 0 for a date or nothing."""
    return float(header) if header is not None and header.strip().isdigit() else 0.0


def _brief(text: str) -> str:
    return " ".join(text.split())[:200] or "an empty body"
