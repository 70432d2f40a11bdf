"""A client of OpenAI-compatible HTTP endpoints: chat and speech, with bounded retries. Only the standard library."""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

AGAIN = (408, 409, 425, 429)
"""Of the client's errors those that may not come again; so may all of the server's (500 and above)."""


class EndpointError(RuntimeError):
    """An endpoint did not give what was asked for.

    Attributes:
        transient: it may at another time, or for another request; otherwise the address, the key or the model is wrong,
            and no request will be answered.
    """

    def __init__(self, text: str, transient: bool) -> None:
        super().__init__(text)
        self.transient = transient


@dataclass(frozen=True)
class Chat:
    """A reply: its text, why it ended ("stop", "length"), and the tokens that the endpoint counted, if it told."""

    text: str
    ended: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Endpoint:
    """One model behind an address. Calls may come from several threads.

    Args:
        url: up to the version, as `http://localhost:8000/v1`.
        model: its name there.
        key_env: environment variable with the key; where it is not set none is sent.
        timeout: seconds for one answer.
        retries: further attempts after refusals that may pass (408, 409, 425, 429, 5xx), broken connections and replies
            that are none. The wait doubles each time, by chance a little less or more; `Retry-After` is obeyed.
        wait, longest: seconds before the second attempt, and the most before any.

    Raises:
        ValueError: if the address is none.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key_env: str = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 5,
        wait: float = 1.0,
        longest: float = 60.0,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"{url}: is no address of an endpoint; write http://HOST:PORT/v1")
        self.url, self.model, self.key_env = url.rstrip("/"), model, key_env
        self.timeout, self.retries, self.wait, self.longest = timeout, retries, wait, longest

    def chat(self, messages: Sequence[dict[str, Any]], **settings: Any) -> Chat:
        """Reply to messages.

        Args:
            settings: further keys of the request, as `temperature`, `max_tokens`, `seed`.

        Raises:
            EndpointError: after the last attempt.
        """
        request = {"model": self.model, "messages": list(messages), **settings}
        chat: Chat = self._ask("chat/completions", request, _chat)
        return chat

    def speech(self, text: str, voice: str, response_format: str = "wav", **settings: Any) -> bytes:
        """A sound file of a spoken text.

        Raises:
            EndpointError: after the last attempt.
        """
        request = {"model": self.model, "input": text, "voice": voice, "response_format": response_format, **settings}
        sound: bytes = self._ask("audio/speech", request, _sound)
        return sound

    def _ask(self, path: str, request: dict[str, Any], read: Any) -> Any:
        url = f"{self.url}/{path}"
        for attempt in range(self.retries + 1):
            after = None
            try:
                with urlopen(self._request(url, request), timeout=self.timeout) as reply:
                    return read(reply.read(), reply.headers.get("Content-Type", ""))
            except HTTPError as error:
                told = " ".join(error.read(400).decode(errors="replace").split())[:200]
                problem = f"{url}: status {error.code}{f' ({told})' if told else ''}"
                if error.code not in AGAIN and error.code < 500:
                    # 400, 413 and 422 are about this request, the others about all of them.
                    raise EndpointError(problem, error.code in (400, 413, 422)) from error
                after = error.headers.get("Retry-After")
            except (URLError, HTTPException, OSError) as error:
                problem = f"{url}: {getattr(error, 'reason', None) or error or type(error).__name__}"
            except ValueError as error:
                problem = f"{url}: {error}"
            if attempt < self.retries:
                time.sleep(self._pause(attempt, after))
        raise EndpointError(f"{problem}, {self.retries + 1} times", True)

    def _request(self, url: str, body: dict[str, Any]) -> Request:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(self.key_env):
            headers["Authorization"] = f"Bearer {key}"
        return Request(url, json.dumps(body).encode(), headers)

    def _pause(self, attempt: int, after: str | None) -> float:
        seconds = self.wait * 2.0**attempt * random.uniform(0.75, 1.25)
        if after is not None and after.strip().isdigit():
            seconds = max(seconds, float(after))
        return min(seconds, self.longest)


def _chat(content: bytes, _: str) -> Chat:
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text, usage = choice["message"]["content"], reply.get("usage") or {}
        if not isinstance(text, str):
            raise TypeError
        return Chat(text, choice.get("finish_reason") or "", usage.get("prompt_tokens"), usage.get("completion_tokens"))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ValueError(f"a reply that is no chat completion ({content[:80]!r})") from None


def _sound(content: bytes, kind: str) -> bytes:
    if not content or kind.startswith(("application/json", "text/")):
        raise ValueError(f"a reply that is no sound ({kind}, {content[:80]!r})")
    return content
