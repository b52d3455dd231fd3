"""Requests to the loopback hub: who asks, what comes in, what goes wrong, and the answer."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import parse_qs, unquote

from loopback_store import Commit, Refused, Repository

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

PIECE_BYTES = 1 << 16
STALL_S = 20.0
REPO = "(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
API = rf"/api/(?:models/|(?=datasets/)){REPO}"
REVISION = "(?P<revision>refs/pr/[0-9]+|[^/]+)"
_SIGNED = ("/large/", "/lfs/", "/api/complete_multipart/")
_BAD_TOKEN = "Invalid credentials in Authorization header"
_NO_TOKEN = "Invalid username or password."


@dataclass(frozen=True)
class Account:
    """Whom a token belongs to, and what it may do.

    Attributes:
        role: of the token: "write" or "read".
        orgs: organisation → role there: "admin", "write", "contributor" or "read".
    """

    name: str = "someone"
    role: str = "write"
    orgs: Mapping[str, str] = field(default_factory=dict)

    def role_at(self, repo: str) -> str | None:
        """The account's role in the namespace of a repository."""
        owner = repo.removeprefix("datasets/").partition("/")[0]
        return "admin" if owner == self.name else self.orgs.get(owner)

    def may_write(self, repo: str) -> bool:
        """Whether the token may change a repository, or make it."""
        return self.role == "write" and self.role_at(repo) not in (None, "read")


@dataclass(frozen=True)
class Fault:
    """How the answer to one request goes wrong.

    Attributes:
        status: this instead of what was asked for.
        message, code: its X-Error-Message and X-Error-Code.
        retry_after_s, limited_s: its Retry-After, and the Hub's own header of that meaning.
        cut_after: the connection is lost after so many bytes of the file that is sent, or of the
            body that comes.
        stall_after: nothing more is sent, taken or answered after so many.
        afterwards: what was asked for is done first; without a status the answer is lost.
        before: called first, as somebody else's commit that comes right before.
        recorded: file name → the hash that the record says afterwards of a file of the commit.
        at_hub: of a file: the status comes from the first host, instead of its redirect.
        corrupt: the first byte of the file is another one.
        ignore_range: the whole file is sent, whatever was asked for.
        claimed_start: the answer says to begin there, and sends the file's first bytes.
        extra_bytes: more than was asked for.
    """

    status: int | None = None
    message: str = ""
    code: str = ""
    retry_after_s: int | None = None
    limited_s: int | None = None
    cut_after: int | None = None
    stall_after: int | None = None
    afterwards: bool = False
    before: Callable[[], object] | None = None
    recorded: Mapping[str, str] = field(default_factory=dict)
    at_hub: bool = False
    corrupt: bool = False
    ignore_range: bool = False
    claimed_start: int | None = None
    extra_bytes: int = 0

    def refusal(self, message: str = "") -> Refused:
        """The answer with `status`."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(self.retry_after_s)
        if self.limited_s is not None:
            headers["RateLimit"] = f'"resolvers";r=0;t={self.limited_s}'
            headers["RateLimit-Policy"] = '"fixed window";"resolvers";q=3000;w=300'
        return Refused(self.status or 500, message or self.message, self.code, headers)

    @property
    def most_bytes(self) -> int | None:
        """Bytes that are sent or taken."""
        if self.afterwards:
            return None
        return self.stall_after if self.cut_after is None else self.cut_after


class Cut(Exception):
    """The connection ends without an answer."""


Work = Callable[..., None]


def route(method: str, pattern: str) -> Callable[[Work], Work]:
    """Answer requests for this address with a method of the handler.

    It gets the groups of the pattern by name, unquoted; `repo` is spelled as it was made, and is
    there for whoever asks.
    """

    def register(work: Work) -> Work:
        Requests.routes.append((method, re.compile(pattern), work))
        return work

    return register


class Requests(BaseHTTPRequestHandler):
    """What the handlers of every kind of request share."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a small answer would wait for the client's acknowledgement
    hub: LoopbackHub
    routes: ClassVar[list[tuple[str, re.Pattern[str], Work]]] = []

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        """Do what is asked for, unless this request is one that goes wrong."""
        self.path_asked, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        self.body = self.pieces()
        self.fault = self.hub.next_upload_fault(self.command, unquote(self.path))
        try:
            if self.fault.before is not None:
                self.fault.before()
            if self.fault.most_bytes == 0 or (self.fault.most_bytes and self.command == "GET"):
                self.broken_off()
            if self.fault.status is not None and not self.fault.afterwards:
                raise self.fault.refusal()
            self._dispatch()
        except Refused as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": str(refusal)}
            content = {"error": str(refusal) or refusal.code}
            self._send(content, refusal.status, headers | dict(refusal.headers))
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    do_HEAD = do_POST = do_PUT = do_GET

    def _dispatch(self) -> None:
        wanted = "GET" if self.command == "HEAD" else self.command
        self.hub.asked += wanted == "GET" and self.path_asked.startswith("/api/")
        for method, pattern, work in self.routes:
            if method == wanted and (match := pattern.fullmatch(self.path_asked)):
                groups = {k: v and unquote(v) for k, v in match.groupdict().items()}
                if self.path_asked.startswith(_SIGNED):
                    if "Authorization" in self.headers:
                        raise Refused(400, "Only one auth mechanism allowed")
                elif "repo" in groups:
                    groups["repo"] = self.visible(groups["repo"])
                work(self, **groups)
                return
        raise Refused(404, f"Sorry, we can't find {self.path_asked}")

    def pieces(self) -> Iterator[bytes]:
        """The body of the request as it comes; raises Cut where the client goes away."""
        most, rate, received = self.fault.most_bytes, self.hub.upload_bytes_per_second, 0
        step = PIECE_BYTES if not rate else max(1, min(PIECE_BYTES, int(rate / 20)))
        for left in self._sizes():
            while left:
                wanted = min(step, left, step if most is None else most - received)
                piece = self.rfile.read(wanted)
                if len(piece) < wanted:
                    raise Cut
                received += len(piece)
                left -= len(piece)
                yield piece
                if most is not None and received >= most:
                    self.broken_off()
                if rate:
                    self.hub.closing.wait(len(piece) / rate)
        if most is not None:
            self.broken_off()

    def _sizes(self) -> Iterator[int]:
        """Bytes that follow one another: all of the body, or each of its chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            yield int(self.headers.get("Content-Length", 0))
            return
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield size
            self.rfile.readline()
        self.rfile.readline()

    def broken_off(self) -> None:
        """Take and answer nothing more."""
        if self.fault.stall_after is not None:
            self.hub.closing.wait(STALL_S)
        raise Cut

    def json(self) -> Any:  # noqa: ANN401 - what a client sent
        """The body as JSON."""
        return json.loads(b"".join(self.body) or b"{}")

    def token(self) -> str:
        """The token that came, known or not; "" for none."""
        return self.headers.get("Authorization", "").removeprefix("Bearer ")

    def account(self) -> Account:
        """Who asks.

        Raises:
            Refused: nobody whom the hub knows.
        """
        if self.token() in self.hub.accounts:
            return self.hub.accounts[self.token()]
        raise Refused(401, _BAD_TOKEN if self.token() else _NO_TOKEN)

    def visible(self, name: str) -> str:
        """A repository that was asked for, spelled as it was made.

        Raises:
            Refused: there is none for whoever asks.
        """
        account = self.account() if self.token() else None
        repo = self.hub.spelled(name)
        seen = repo not in self.hub.private or (account and account.role_at(repo) is not None)
        if repo and seen:
            return repo
        words = "Repository not found" if account else _NO_TOKEN
        raise Refused(404 if account else 401, words, "RepoNotFound")

    def commit_at(self, repo: str, revision: str) -> Commit:
        return self.hub.repository(repo).at(revision)

    def repository(self, repo: str) -> Repository:
        """A repository that can be written to.

        Raises:
            Refused: the hub has no storage.
        """
        if repo not in self.hub.written:
            raise Refused(405, "This hub only reads: the test gave it no storage")
        return self.hub.written[repo]

    def answer(
        self, content: object, status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send JSON, or bytes as they are."""
        if self.fault.afterwards:
            if self.fault.status is None:
                self._drain()
                self.broken_off()
            raise self.fault.refusal()
        self._send(content, status, headers or {})

    def _send(self, content: object, status: int, headers: Mapping[str, str]) -> None:
        self._drain()
        body = content
        if not isinstance(body, bytes):
            body = json.dumps(content, default=str).encode()  # YAML knows dates
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _drain(self) -> None:
        """Take what is left of the body: the connection stays good for the next request."""
        for _ in self.body:
            pass
