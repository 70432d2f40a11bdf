"""An OpenAI-compatible endpoint on loopback: chat and speech, with whatever faults a test asks for."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import soundfile

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
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.write, server.requests, server.faults, server.lock = write, [], [], threading.Lock()
    server.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
