"""A small real hub on loopback, which answers as the Hub does and can be told to misbehave.

Two servers, as on the Hub: one for the API and small files, and one for large files, to which the
first redirects, and which refuses an access token as signed addresses do. Files are served from
disk, in pieces.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD_TOKEN = "hf_good"
PIECE_BYTES = 1 << 16
_REPO = "(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
_API = re.compile(rf"^/api/(?:models/|(?=datasets/)){_REPO}(/revision/(?P<revision>.+))?$")
_FILE = re.compile(rf"^/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<file>.+)$")
_LARGE = re.compile(rf"^/large/{_REPO}/(?P<revision>[^/]+)/(?P<file>.+)$")


@dataclass(frozen=True)
class Fault:
    """How one answer with a file goes wrong.

    Attributes:
        status: this instead of the file; with Retry-After where `retry_after_s` is given, and
            with the Hub's own header of that meaning where `limited_s` is.
        at_hub: the status comes from the first host, instead of its redirect.
        cut_after: the connection is closed after so many bytes.
        stall_after: nothing more comes after so many bytes, and the connection stays open.
        corrupt: the first byte is another one.
        ignore_range: the whole file is sent, whatever was asked for.
        claimed_start: the answer says to begin there, and sends the file's first bytes.
        extra_bytes: more than was asked for.
    """

    status: int | None = None
    retry_after_s: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    corrupt: bool = False
    ignore_range: bool = False
    at_hub: bool = False
    limited_s: int | None = None
    claimed_start: int | None = None
    extra_bytes: int = 0


@dataclass
class Served:
    """One answer with a file's bytes: from where, and how many were sent."""

    name: str
    start: int
    sent_bytes: int = 0


@dataclass
class LoopbackHub:
    """What is served, and how.

    Attributes:
        repos: OWNER/NAME → revision or commit → folder; the revision "main" is asked for by
            default, and has the commit COMMIT. Datasets are datasets/OWNER/NAME.
        cards: repository → the metadata of its card.
        gated: repositories whose files nobody may read.
        private: repositories that only GOOD_TOKEN sees.
        faults: file name → what goes wrong with its next answers, one after another.
        always: file name → what goes wrong with each of its answers.
        api_faults: what goes wrong with the next answers of the API; a number is a status.
        echo_token: the refusals of the API repeat the token that came.
        claims: file name → size in the record, instead of its own.
        bytes_per_second: of each answer; None for all that the machine can do.
        asked: how often the API was.
        served: every answer with a file, in order of beginning.
        together: most answers under way at a time.
    """

    repos: dict[str, dict[str, Path]]
    cards: dict[str, object] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    api_faults: list[int | Fault] = field(default_factory=list)
    echo_token: bool = False
    claims: dict[str, int] = field(default_factory=dict)
    bytes_per_second: float | None = None
    asked: int = 0
    served: list[Served] = field(default_factory=list)
    together: int = 0
    address: str = ""
    large_address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0

    def sent_bytes(self, name: str | None = None) -> int:
        """Bytes sent of one file, or of all."""
        return sum(s.sent_bytes for s in self.served if name in (None, s.name))

    def names(self) -> list[str]:
        """Names of the files served."""
        return [served.name for served in self.served]


def commit_of(revision: str) -> str:
    """The commit of a revision: commits are their own, `main` is COMMIT."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()


@cache
def _hashes(path: Path, size: int, modified_ns: int) -> tuple[str, str]:
    """SHA-256, and the git object id, of a file."""
    sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {size}\0".encode())
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            sha256.update(piece)
            git.update(piece)
    return sha256.hexdigest(), git.hexdigest()


def record(folder: Path, name: str, claims: dict[str, int]) -> dict[str, object]:
    """A file as the API lists it: with an LFS record where it is large."""
    path = folder / name
    stat = path.stat()
    size = claims.get(name, stat.st_size)
    sha256, git = _hashes(path, stat.st_size, stat.st_mtime_ns)
    entry: dict[str, object] = {"rfilename": name, "size": size, "blobId": git}
    if _is_large(name):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        entry["blobId"] = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
        entry["lfs"] = {"sha256": sha256, "size": size, "pointerSize": len(pointer)}
    return entry


def _is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".model", ".gguf", ".parquet"))


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        path = unquote(path)
        if match := _LARGE.match(path):
            if "Authorization" in self.headers:
                self.refuse(400, message="Only one auth mechanism allowed")
            else:
                self.send_file(match)
            return
        match = _API.match(path) or _FILE.match(path)
        self.hub.asked += path.startswith("/api/")
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", GOOD_TOKEN):
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif match is None or self.spelled(match["repo"]) not in self.hub.repos:
            self.refuse(404 if token else 401, "RepoNotFound" if token else "")
        elif match["repo"] in self.hub.private and not token:
            self.refuse(401)
        elif match.re is _API and self.hub.api_faults:
            fault = self.hub.api_faults.pop(0)
            fault = Fault(fault) if isinstance(fault, int) else fault
            message = f"no, {token}" if self.hub.echo_token else ""
            self.refuse(fault.status or 500, "", message, fault)
        elif (match["revision"] or "main") not in self.revisions(match["repo"]):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {match['revision']}")
        elif match.re is _API:
            repo = self.spelled(match["repo"])
            self.send_record(repo, match["revision"] or "main", "blobs=" in query)
        elif match["repo"] in self.hub.gated:
            self.refuse(403 if token else 401, "GatedRepo")
        elif not (self.revisions(match["repo"])[match["revision"]] / match["file"]).is_file():
            self.refuse(404, "EntryNotFound")
        elif (fault := self.hub.always.get(match["file"], Fault())).at_hub:
            self.refuse(fault.status or 500, fault=fault)
        elif _is_large(match["file"]):
            self.send_response(302)
            place = f"{match['repo']}/{match['revision']}/{match['file']}"
            self.send_header("Location", f"{self.hub.large_address}/large/{place}?signature=x")
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            self.send_file(match)

    def revisions(self, repo: str) -> dict[str, Path]:
        """Names and commits → folder."""
        named = self.hub.repos[self.spelled(repo)]
        return named | {commit_of(name): folder for name, folder in named.items()}

    def spelled(self, repo: str) -> str:
        """A repository's name as it was given: the Hub takes capitals for small letters."""
        return next((name for name in self.hub.repos if name.lower() == repo.lower()), "")

    def refuse(
        self, status: int, code: str = "", message: str = "", fault: Fault | None = None
    ) -> None:
        fault = fault or Fault()
        body = json.dumps({"error": message or code}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        if fault.retry_after_s is not None:
            self.send_header("Retry-After", str(fault.retry_after_s))
        if fault.limited_s is not None:
            self.send_header("RateLimit", f'"resolvers";r=0;t={fault.limited_s}')
            self.send_header("RateLimit-Policy", '"fixed window";"resolvers";q=3000;w=300')
        self.end_headers()
        self.wfile.write(body)

    def send_record(self, repo: str, revision: str, blobs: bool) -> None:
        folder = self.revisions(repo)[revision]
        names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        siblings = [
            record(folder, name, self.hub.claims) if blobs else {"rfilename": name}
            for name in names
        ]
        content = {"id": repo.removeprefix("datasets/"), "sha": commit_of(revision)}
        content |= {"siblings": siblings, "tags": [], "cardData": self.hub.cards.get(repo)}
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, match: re.Match[str]) -> None:
        hub, name = self.hub, match["file"]
        path = self.revisions(match["repo"])[match["revision"]] / name
        fault = hub.always.get(name, Fault())
        with hub.lock:
            if hub.faults.get(name):
                fault = hub.faults[name].pop(0)
        if fault.status is not None:
            self.refuse(fault.status, fault=fault)
            return
        size = path.stat().st_size
        wanted = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, size
        if wanted and not fault.ignore_range:
            start = int(wanted[1])
            stop = min(int(wanted[2] or size) + 1, size)
            if start >= size:
                self.refuse(416)
                return
            self.send_response(206)
            claimed = start if fault.claimed_start is None else fault.claimed_start
            end = stop + fault.extra_bytes
            self.send_header("Content-Range", f"bytes {claimed}-{claimed + end - start - 1}/{size}")
        else:
            self.send_response(200)
        if fault.claimed_start is not None:
            start, stop = 0, stop - start
        self.send_header("Content-Length", str(stop - start + fault.extra_bytes))
        self.end_headers()
        served = Served(name, start)
        with hub.lock:
            hub.served.append(served)
            hub.under_way += 1
            hub.together = max(hub.together, hub.under_way)
        try:
            self.send_content(path, served, stop, fault)
        finally:
            with hub.lock:
                hub.under_way -= 1

    def send_content(self, path: Path, served: Served, stop: int, fault: Fault) -> None:
        limits = [n for n in (fault.cut_after, fault.stall_after) if n is not None]
        end = min([stop, *(served.start + n for n in limits)])
        with path.open("rb") as file:
            file.seek(served.start)
            position = served.start
            while position < end and not self.hub.closing.is_set():
                piece = file.read(min(PIECE_BYTES, end - position))
                position += len(piece)
                if fault.corrupt and served.sent_bytes == 0:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                self.wfile.write(piece)
                served.sent_bytes += len(piece)
                if self.hub.bytes_per_second:
                    time.sleep(len(piece) / self.hub.bytes_per_second)
        self.wfile.write(b"x" * fault.extra_bytes)
        self.wfile.flush()
        if fault.stall_after is not None:
            self.hub.closing.wait(20)
        if limits:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        pass  # clients go away in the middle of an answer: that is what they are tested for


@contextmanager
def hub(repos: dict[str, Path | dict[str, Path]], **settings: object) -> Iterator[LoopbackHub]:
    """Serve `repos` (OWNER/NAME → folder, or revision → folder); see LoopbackHub for `settings`."""
    named = {n: f if isinstance(f, dict) else {"main": f} for n, f in repos.items()}
    served = LoopbackHub(named, **settings)  # type: ignore[arg-type]
    handler = type("Handler", (_Handler,), {"hub": served})
    servers = [_Server(("127.0.0.1", 0), handler) for _ in range(2)]
    served.address, served.large_address = (
        f"http://127.0.0.1:{server.server_port}" for server in servers
    )
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        for server in servers
    ]
    for thread in threads:
        thread.start()
    try:
        yield served
    finally:
        served.closing.set()
        for server, thread in zip(servers, threads, strict=True):
            server.shutdown()
            server.server_close()
            thread.join()
