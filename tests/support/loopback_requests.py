"""Requests to the loopback hub: who asks, what comes in, what goes wrong, and the answer."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote

from loopback_store import Commit, Recorded, Refused, Repository

if TYPE_CHECKING:
    from loopback_hub import LoopbackHub

PIECE_BYTES = 1 << 16
STALL_S = 20.0


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

    def belongs(self, repo: str) -> bool:
        """Whether this account sees a private repository."""
        owner = _owner(repo)
        return owner == self.name or owner in self.orgs

    def may_write(self, repo: str) -> bool:
        """Whether the token may change a repository, or make it."""
        owner = _owner(repo)
        member = owner == self.name or self.orgs.get(owner, "read") != "read"
        return self.role == "write" and member


def _owner(repo: str) -> str:
    return repo.removeprefix("datasets/").partition("/")[0]


@dataclass(frozen=True)
class UploadFault:
    """How the answer to one request goes wrong.

    Attributes:
        status: this instead of what was asked for.
        message, code: its X-Error-Message and X-Error-Code.
        headers: more of them, as Retry-After.
        cut_after: the connection is lost after so many bytes of the request's body.
        stall_after: nothing more is taken or answered after so many.
        afterwards: what was asked for is done first; without a status the answer is lost.
        before: called first, as somebody else's commit that comes right before.
        recorded: what the record says afterwards of files of the commit that is asked for.
    """

    status: int | None = None
    message: str = ""
    code: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    stall_after: int | None = None
    afterwards: bool = False
    before: Callable[[], object] | None = None
    recorded: Mapping[str, Recorded] = field(default_factory=dict)

    @property
    def most_bytes(self) -> int | None:
        """Bytes of the body that are taken."""
        if self.afterwards:
            return None
        return self.stall_after if self.cut_after is None else self.cut_after


class Cut(Exception):
    """The connection ends without an answer."""


class Requests(BaseHTTPRequestHandler):
    """What the handlers of every kind of request share."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a small answer would wait for the client's acknowledgement
    hub: LoopbackHub

    def log_message(self, *arguments: object) -> None:
        pass

    def guarded(self, work: Callable[[], None]) -> None:
        """Do `work`, unless this request is one that goes wrong."""
        self.route, _, query = self.path.partition("?")
        self.query = {name: values[-1] for name, values in parse_qs(query).items()}
        self.body = self.pieces()
        self.fault = self.hub.next_upload_fault(self.command, unquote(self.path))
        try:
            if self.fault.before is not None:
                self.fault.before()
            if self.fault.most_bytes == 0 or (self.fault.most_bytes and self.command == "GET"):
                self.broken_off()
            if self.fault.status is not None and not self.fault.afterwards:
                self.drained()
                self.refuse_with_fault()
            else:
                work()
        except Refused as refusal:
            self.drained()
            self.refuse(refusal.status, refusal.code, str(refusal))
        except Cut:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

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

    def drained(self) -> None:
        """Take what is left of the body: the connection stays good for the next request."""
        for _ in self.body:
            pass

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
        if self.token():
            raise Refused(401, "Invalid credentials in Authorization header")
        raise Refused(401, "Invalid username or password.")

    def sees(self, repo: str) -> bool:
        """Whether a repository is there for whoever asks."""
        if repo not in self.hub.private:
            return True
        account = self.hub.accounts.get(self.token())
        return account is not None and account.belongs(repo)

    def spelled(self, repo: str) -> str:
        """A repository's name as it was given: the Hub takes capitals for small letters."""
        names = self.hub.names_of_repositories()
        return next((name for name in names if name.lower() == repo.lower()), "")

    def visible(self, match: re.Match[str]) -> str:
        """The repository of an address, spelled as it was given.

        Raises:
            Refused: there is none for whoever asks.
        """
        if self.token() and self.token() not in self.hub.accounts:
            raise Refused(401, "Invalid credentials in Authorization header")
        repo = self.spelled(unquote(match["repo"]))
        if not repo or not self.sees(repo):
            known = bool(self.token())
            words = "Repository not found" if known else "Invalid username or password."
            raise Refused(404 if known else 401, words, "RepoNotFound")
        return repo

    def commit_at(self, repo: str, revision: str) -> Commit:
        """A revision, as it came in an address.

        Raises:
            Refused: there is none.
        """
        commit = self.hub.commit(repo, unquote(revision))
        if commit is None:
            raise Refused(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit

    def repository(self, repo: str) -> Repository:
        """A repository that can be written to.

        Raises:
            Refused: the hub has no storage.
        """
        found = self.hub.store.repositories.get(repo) if self.hub.store else None
        if found is None:
            raise Refused(405, "This hub only reads: the test gave it no storage")
        return found

    def answer(
        self,
        content: object,
        status: int = 200,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send JSON, or bytes as they are."""
        if self.fault.afterwards:
            self.drained()
            if self.fault.status is None:
                self.broken_off()
            self.refuse_with_fault()
            return
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.drained()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse_with_fault(self) -> None:
        """Answer as `fault` says."""
        fault = self.fault
        self.refuse(fault.status or 500, fault.code, fault.message, headers=fault.headers)

    def refuse(
        self,
        status: int,
        code: str = "",
        message: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send an error with the Hub's headers for it."""
        body = json.dumps({"error": message or code}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if code:
            self.send_header("X-Error-Code", code)
        if message:
            self.send_header("X-Error-Message", message)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
