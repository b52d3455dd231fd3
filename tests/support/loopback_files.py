"""Files of the loopback hub over HTTP, whole or in ranges, and what goes wrong with them."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from loopback_listings import API, REPO, Listings
from loopback_requests import PIECE_BYTES
from loopback_store import Commit, Refused, hashes

_INFO = re.compile(rf"{API}(?:/revision/(?P<revision>.+))?$")
_REVISION = "(?P<revision>refs/pr/[0-9]+|[^/]+)"
_FILE = re.compile(rf"^/{REPO}/resolve/{_REVISION}/(?P<file>.+)$")
_LARGE = re.compile(rf"^/large/{REPO}/{_REVISION}/(?P<file>.+)$")


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

    def headers(self) -> dict[str, str]:
        """Of the answer with `status`."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.limited_s is not None:
            headers["RateLimit"] = f'"resolvers";r=0;t={self.limited_s}'
            headers["RateLimit-Policy"] = '"fixed window";"resolvers";q=3000;w=300'
        return headers


@dataclass
class Served:
    """One answer with a file's bytes.

    Attributes:
        start, stop: the bytes that were asked for.
        sent_bytes: how many were sent so far, the piece under way included.
    """

    name: str
    start: int
    stop: int
    sent_bytes: int = 0


class Files(Listings):
    """GET and HEAD of files, and of a repository's record."""

    def do_GET(self) -> None:
        self.guarded(self.read)

    def do_HEAD(self) -> None:
        self.guarded(self.read)

    def read(self) -> None:
        if match := _LARGE.match(unquote(self.route)):
            if "Authorization" in self.headers:
                self.refuse(400, message="Only one auth mechanism allowed")
            else:
                repo, name = match["repo"], match["file"]
                self.send_file(self.commit_at(self.spelled(repo), match["revision"]), name)
            return
        self.hub.asked += self.route.startswith("/api/")
        if self.listed():
            return
        match = _INFO.match(self.route) or _FILE.match(unquote(self.route))
        if match is None:
            raise Refused(404, f"Sorry, we can't find {self.route}")
        repo = self.visible(match)
        if match.re is _INFO and self.hub.api_faults:
            fault = self.hub.api_faults.pop(0)
            fault = Fault(fault) if isinstance(fault, int) else fault
            message = f"no, {self.token()}" if self.hub.echo_token else ""
            self.refuse(fault.status or 500, "", message, fault.headers())
        elif match.re is _INFO:
            self.send_record(repo, self.commit_at(repo, match["revision"] or "main"))
        else:
            self.send_resolved(repo, match["revision"], match["file"])

    def send_resolved(self, repo: str, revision: str, name: str) -> None:
        """A small file, or where a large one is."""
        commit, token = self.commit_at(repo, revision), self.token()
        if repo in self.hub.gated:
            self.refuse(403 if token else 401, "GatedRepo")
        elif not (commit.folder / name).is_file():
            self.refuse(404, "EntryNotFound", headers={"X-Repo-Commit": commit.id})
        elif (fault := self.hub.always.get(name, Fault())).at_hub:
            self.refuse(fault.status or 500, headers=fault.headers())
        elif commit.is_large(name):
            of = revision if commit.large is None else commit.id  # main may move meanwhile
            place = f"{repo}/{quote(of, safe='')}/{quote(name)}"
            headers = {"Location": f"{self.hub.large_address}/large/{place}?signature=x"}
            self.answer(b"", 302, headers | self.described(commit, name))
        else:
            self.send_file(commit, name)

    def described(self, commit: Commit, name: str) -> dict[str, str]:
        """Headers of the first server; a large file's hash, which takes time, where it is asked."""
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if commit.is_large(name):
            headers["X-Linked-Size"] = str((commit.folder / name).stat().st_size)
            if self.command == "HEAD" or commit.large is not None:
                headers["X-Linked-Etag"] = f'"{hashes(commit.folder / name)[0]}"'
        else:
            headers["ETag"] = f'"{hashes(commit.folder / name)[1]}"'
        return headers

    def stored(self, path: Path) -> dict[str, str]:
        """Headers of the second server, which knows no commits."""
        stat = path.stat()
        return {"ETag": f'"{stat.st_mtime_ns:x}-{stat.st_size:x}"', "Accept-Ranges": "bytes"}

    def send_file(self, commit: Commit, name: str) -> None:
        """The bytes of a file that were asked for."""
        hub, path = self.hub, commit.folder / name
        fault = Fault() if self.command == "HEAD" else self.next_fault(name)
        if fault.status is not None:
            self.refuse(fault.status, headers=fault.headers())
            return
        size = path.stat().st_size
        wanted = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        start, stop = 0, size
        if wanted and not fault.ignore_range:
            start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
            stop = min(int(wanted[2] or size) + 1, size) if wanted[1] else size
            if start >= size:
                self.refuse(416, headers={"Content-Range": f"bytes */{size}"})
                return
            self.send_response(206)
            claimed = start if fault.claimed_start is None else fault.claimed_start
            end = stop + fault.extra_bytes
            self.send_header("Content-Range", f"bytes {claimed}-{claimed + end - start - 1}/{size}")
        else:
            self.send_response(200)
        if fault.claimed_start is not None:
            start, stop = 0, stop - start
        large = commit.is_large(name)
        headers = self.stored(path) if large else self.described(commit, name)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(stop - start + fault.extra_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        served = Served(name, start, stop)
        with hub.lock:
            hub.served.append(served)
            hub.under_way += 1
            hub.together = max(hub.together, hub.under_way)
        try:
            self.send_content(path, served, stop, fault)
        finally:
            with hub.lock:
                hub.under_way -= 1

    def next_fault(self, name: str) -> Fault:
        """What goes wrong with the next answer with a file."""
        with self.hub.lock:
            if self.hub.faults.get(name):
                return self.hub.faults[name].pop(0)
        return self.hub.always.get(name, Fault())

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
                served.sent_bytes += len(piece)  # first: a client has no byte that is not counted
                self.wfile.write(piece)
                if self.hub.bytes_per_second:
                    time.sleep(len(piece) / self.hub.bytes_per_second)
        self.wfile.write(b"x" * fault.extra_bytes)
        self.wfile.flush()
        if fault.stall_after is not None:
            self.hub.closing.wait(20)
        if limits:
            self.close_connection = True
