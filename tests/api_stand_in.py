"""An OpenAI-compatible endpoint on loopback: chat and speech, with faults in place of replies, or a script of them."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import soundfile
from served import serving

Fault = tuple[int, bytes, dict[str, str]]
"""Status, body and headers in place of a reply."""


def tone(seconds: float = 0.5, rate: int = 24000) -> bytes:
    """A wav file."""
    made = io.BytesIO()
    samples = 0.3 * np.sin(2 * np.pi * 220 * np.arange(int(seconds * rate)) / rate)
    soundfile.write(made, samples, rate, format="WAV", subtype="PCM_16")
    return made.getvalue()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append((self.path, asked, dict(self.headers)))
            fault = self.server.faults.pop(0) if self.server.faults else None
        if fault is not None:
            self._send(*fault)
        elif self.path.endswith("/audio/speech"):
            self._send(200, tone(), {"Content-Type": "audio/wav"})
        else:
            text = self.server.write(asked["messages"][-1]["content"])
            reply = {"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}]}
            reply["usage"] = {"prompt_tokens": 100, "completion_tokens": 10}
            self._send(200, json.dumps(reply).encode(), {"Content-Type": "application/json"})

    def _send(self, status, body, headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def endpoint(write: Callable[[str], str] = lambda prompt: "Fine.") -> Iterator[ThreadingHTTPServer]:
    """A server with `url`, `requests` (path, body, headers) and `faults`, which are used up first."""
    with serving(Handler) as server:
        server.write, server.requests, server.faults, server.lock = write, [], [], threading.Lock()
        server.url = f"{server.address}/v1"
        yield server


Script = Callable[[dict[str, Any], int], Any]
"""Of a request and its number, from 0: a text, a message, `(status, body, headers)`, or None to hang up."""


@dataclass
class Seen:
    """What came in."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def chat_server(script: Script) -> Iterator[Seen]:
    """Serves `/v1/chat/completions` by a script until the block ends."""
    seen, lock = Seen(), threading.Lock()

    class Scripted(Handler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.requests)
                seen.requests.append(body)
                seen.keys.append(self.headers.get("Authorization"))
            reply = script(body, number) if self.path == "/v1/chat/completions" else (404, "no such path", {})
            if reply is None:
                self.close_connection = True
                return
            status, headers = 200, {}
            if isinstance(reply, tuple):
                status, reply, headers = reply
            elif isinstance(reply, str):
                reply = {"role": "assistant", "content": reply}
            if isinstance(reply, dict):
                reply = json.dumps({"choices": [{"index": 0, "message": reply}]})
            self._send(status, reply.encode(), headers)

    with serving(Scripted) as server:
        seen.url = f"{server.address}/v1"
        yield seen
