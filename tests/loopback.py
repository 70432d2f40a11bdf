"""An OpenAI-compatible endpoint on this machine, whose replies a test scripts."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Script = Callable[[dict[str, Any], int], Any]
"""Of a request and its number, from 0: a text, a message, `(status, body, headers)`, or None to hang up."""


@dataclass
class Loopback:
    """What came in."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@contextmanager
def chat_server(script: Script) -> Iterator[Loopback]:
    """Serves `/v1/chat/completions` until the block ends."""
    seen, lock = Loopback(), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.requests)
                seen.requests.append(body)
                seen.keys.append(self.headers.get("Authorization"))
            reply = script(body, number) if self.path == "/v1/chat/completions" else (404, "no such path", {})
            if reply is None:
                self.connection.close()
                return
            status, headers = 200, {}
            if isinstance(reply, tuple):
                status, reply, headers = reply
            elif isinstance(reply, str):
                reply = {"role": "assistant", "content": reply}
            if isinstance(reply, dict):
                reply = json.dumps({"choices": [{"index": 0, "message": reply}]})
            content = reply.encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    seen.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
