"""A small real model hub on loopback: what huggingface_hub asks for to download a snapshot."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_API = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)(/revision/(?P<revision>[^/?]+))?")
_TREE = re.compile(r"^/api/models/(?P<repo>[^/]+/[^/]+)/tree/")
_FILE = re.compile(r"^/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repos: dict[str, Path]
    gated: set[str]
    served: list[str]

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        match = _TREE.match(path) or _FILE.match(path) or _API.match(path)
        repo = match["repo"] if match else ""
        if match is None or repo not in self.repos:
            self.send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        elif repo in self.gated and match.re is _FILE:
            self.send(403, b"{}", body, {"X-Error-Code": "GatedRepo"})
        elif match.re is _FILE:
            self.send_file(self.repos[repo] / match["file"], body)
        elif match.re is _TREE:
            self.send(200, json.dumps(self.tree(repo)).encode(), body)
        elif match["revision"] not in (None, "main", COMMIT):
            self.send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        else:
            files = [{"rfilename": entry["path"]} for entry in self.tree(repo)]
            content = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": files, "tags": []}
            self.send(200, json.dumps(content).encode(), body)

    def tree(self, repo: str) -> list[dict[str, object]]:
        return [
            {"type": "file", "path": p.name, "size": p.stat().st_size, "oid": "0" * 40}
            for p in sorted(self.repos[repo].iterdir())
        ]

    def send_file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self.send(404, b"{}", body, {"X-Error-Code": "EntryNotFound"})
            return
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": COMMIT,
            "Accept-Ranges": "bytes",
        }
        status = 200
        wanted = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            status, content = 206, content[int(wanted[1]) :]
        if body:
            self.served.append(path.name)
        self.send(status, content, body, headers)

    def send(
        self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


@contextmanager
def hub(repos: dict[str, Path], gated: set[str] | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve `repos` (OWNER/NAME → folder); yields the address and the names of files served."""
    served: list[str] = []
    attributes = {"repos": repos, "gated": gated or set(), "served": served}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), attributes))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
