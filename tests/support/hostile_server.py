"""A server on loopback that answers every request with the same bytes, however many and slow."""

from __future__ import annotations

import gzip
import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

from serving import serving


@dataclass
class Hostile:
    """One answer to all requests, for as long as the client reads.

    Attributes:
        pieces: of the body, made anew for each request.
        headers: beside Connection; without a Content-Length the body ends with the connection.
        requests: paths that were asked for.
        sent_bytes: of all bodies.
    """

    pieces: Callable[[], Iterable[bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    requests: list[str] = field(default_factory=list)
    sent_bytes: int = 0


def content(value: object) -> Hostile:
    """JSON, or bytes as they are."""
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return Hostile(lambda: [body], {"Content-Length": str(len(body))})


def endless() -> Hostile:
    return Hostile(lambda: itertools.repeat(b"[" * 65536))


def slow(seconds: float, piece: bytes = b" ") -> Hostile:
    """A piece after each so many seconds."""

    def pieces() -> Iterator[bytes]:
        while True:
            time.sleep(seconds)
            yield piece

    return Hostile(pieces)


def bomb() -> Hostile:
    """Megabytes that become a thousand times as many."""
    packed = gzip.compress(b" " * (16 << 20), 1)
    return Hostile(lambda: itertools.repeat(packed, 1000), {"Content-Encoding": "gzip"})


def around() -> Hostile:
    """A redirect to itself, each with a long body."""
    pieces = lambda: itertools.repeat(b"x" * 65536, 100)  # noqa: E731
    return Hostile(pieces, {"Location": "/again"}, 302)


def too_short() -> Hostile:
    return Hostile(lambda: [b"{}"], {"Content-Length": "1000"})


@contextmanager
def answering(hostile: Hostile) -> Iterator[str]:
    """The address of a server that answers so."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            hostile.requests.append(self.path)
            self.send_response(hostile.status)
            for name, value in ({"Connection": "close"} | dict(hostile.headers)).items():
                self.send_header(name, value)
            self.end_headers()
            for piece in hostile.pieces():
                hostile.sent_bytes += len(piece)
                self.wfile.write(piece)

        do_POST = do_HEAD = do_GET

    with serving(Handler) as address:
        yield address
