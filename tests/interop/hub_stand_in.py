"""A model hub on loopback: as much of the Hugging Face hub's HTTP API as moving small files asks for."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

from served import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repositories are `server.repos`: name -> path -> bytes."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _json(self, data, status=200):
        self._send(json.dumps(data).encode(), {"Content-Type": "application/json"}, status)

    def _send(self, body, headers, status=200):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repo(self, path):
        return "/".join(path.split("/")[:2])

    def do_GET(self):
        repos, path = self.server.repos, self.path.split("?")[0].strip("/")
        if path.startswith("api/models/"):
            name = self._repo(path.removeprefix("api/models/"))
            if name not in repos:
                return self._missing()
            files = [
                {"type": "file", "rfilename": file, "path": file, "size": len(body), "oid": _oid(body)}
                for file, body in repos[name].items()
            ]
            if "/tree/" in path:
                return self._json(files)
            return self._json({"id": name, "sha": COMMIT, "siblings": files, "private": False, "tags": []})
        name, _, rest = path.partition("/resolve/")
        file = rest.partition("/")[2]
        if file not in repos.get(name, {}):
            return self._missing()
        body = repos[name][file]
        return self._send(body, {"ETag": f'"{_oid(body)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    do_HEAD = do_GET

    def _missing(self):
        self._send(b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, 404)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        pieces = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def do_POST(self):
        body = self._body()
        path = self.path.split("?")[0].strip("/")
        if path == "api/validate-yaml":  # of a model card
            return self._json({"errors": [], "warnings": []})
        if path == "api/repos/create":
            given = json.loads(body)
            name = f"{given.get('organization') or 'me'}/{given['name']}"
            self.server.repos.setdefault(name, {})
            return self._json({"url": f"{self.server.address}/{name}", "name": name})
        name = self._repo(path.removeprefix("api/models/"))
        if "/preupload/" in path:
            files = json.loads(body)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": told})
        for line in filter(None, body.splitlines()):
            entry = json.loads(line)
            if entry["key"] == "file":
                self.server.repos[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        address = f"{self.server.address}/{name}/commit/{COMMIT}"
        return self._json({"commitUrl": address, "commitOid": COMMIT, "success": True})


def _oid(body):
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


@contextmanager
def running():
    """A hub, with `repos` and `address`."""
    with serving(Hub) as server:
        server.repos = {}
        yield server
