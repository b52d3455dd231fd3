"""JSON requests to a llama-server, and what goes wrong with them.

Through the standard library's http.client. httpx2, which huggingface_hub brings, is no dependency
of ours, and its defaults are wrong here: it takes proxies from the environment, and gives a server
five seconds where a prefill may be silent for ten minutes.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.core.progress import Progress

API_KEY_VARIABLE = "LLAMA_API_KEY"
CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 3600.0
"""Longest silence of a server that is there: a question may wait for a whole prefill. One that is
gone is noticed by TCP's keep-alive."""
LOADING_SECONDS = 3600.0
"""Longest wait for a model to be loaded: 70 GiB from a slow disk take half of it."""
UNAVAILABLE_SECONDS = 30.0
"""Longest wait for a server that says 503 for any other reason: a restart behind a proxy."""
POLL_SECONDS = 1.0
IDLE_SECONDS = 2.0
"""A connection that was idle for less is used again; llama-server closes it after five. Thousands
of short requests over one connection each would use up this machine's ports."""
WORDS_CHARACTERS = 200
"""Of a server's own words, as far as they are told: a proxy's are a page of HTML."""
_LOADING = "loading model"
"""llama-server's message, in small letters, until its model is there; its `type` is the same for
all that it cannot do now."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}

Answer = dict[str, Any]


class Refused(InputError):
    """The server understood a request and refuses it; its own words are in the message."""


class Endpoint:
    """The address of a llama-server.

    Args:
        address: `http://HOST:PORT`, or https, with the server's --api-prefix if it has one.
        progress: told while the server loads its model.

    The key that a server may ask for is read from LLAMA_API_KEY. Requests go to the server
    directly, never through a proxy.

    Raises:
        InputError: no address of a server.
    """

    def __init__(self, address: str, progress: Progress) -> None:
        try:
            parts = urlsplit(address)
            host, port = parts.hostname or "", parts.port
            host.encode("idna")
        except ValueError:  # its words may hold a part of a password
            raise _no_address("host or port is not valid") from None
        if parts.scheme not in ("http", "https") or not host:
            raise _no_address("http:// or the host is missing")
        if "@" in parts.netloc:
            raise _no_address(f"is a user's name, and a key goes into {API_KEY_VARIABLE}")
        if "?" in address or "#" in address:
            raise _no_address("is a ? or a #, and what follows would not be sent")
        if not (host + parts.path).isprintable() or " " in address or not parts.path.isascii():
            raise _no_address("are characters that none has")
        self._host, self._tls = host, parts.scheme == "https"
        # Given always: http.client would look for a missing one in the host, which may be ::1.
        self._port = (443 if self._tls else 80) if port is None else port
        self._base = parts.path.rstrip("/")
        self.address = f"{parts.scheme}://{parts.netloc}{self._base}"
        self._progress = progress
        self._idle: http.client.HTTPConnection | None = None
        self._idle_since = 0.0

    @property
    def loopback(self) -> bool:
        """Whether the server runs on this machine, as its address tells."""
        try:
            return ip_address(self._host).is_loopback
        except ValueError:
            return self._host == "localhost"

    def close(self) -> None:
        """Close the idle connection."""
        if self._idle is not None:
            self._idle.close()
            self._idle = None

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """The JSON object that the server answers with.

        Raises:
            Refused: by the server.
            InputError: the key is wrong, or this is no llama-server.
            EnvironmentFault: the server cannot be reached, or stopped.
        """
        with self._response(method, path, body) as response:
            return self._json(response.read())

    def events(self, path: str, body: Mapping[str, object]) -> Iterator[Answer]:
        """The JSON objects of a stream of events, as they come; errors as in `ask`."""
        with self._response("POST", path, body) as response:
            for line in response:
                if line.startswith(b"data:"):  # others are pings, and ends of events
                    event = self._json(line[5:])
                    if "error" in event:
                        raise self._refused(event["error"])
                    yield event

    def stranger(self, why: str) -> InputError:
        """The error that this is not a server that can be worked with."""
        return InputError(
            f"{self.address} is no llama-server that this check can use: {why}; give the address "
            "of a llama-server of 2026"
        )

    def gone(self, why: str) -> EnvironmentFault:
        """The error that the server stopped."""
        return EnvironmentFault(
            f"{self.address} stopped in the middle of an answer ({why}): look at its log, start "
            "it again, and run the same command again; what was answered before is kept"
        )

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request with status 200, after a wait for a server that still loads."""
        content = None if body is None else json.dumps(body).encode()
        since: dict[bool, float] = {}
        while True:
            connection = response = None
            try:
                connection, response = self._sent(method, self._base + path, content)
                if response.status == 200:
                    yield response
                    return
                status, said = response.status, response.read()
            except (OSError, http.client.HTTPException) as error:
                raise self.gone(str(error) or type(error).__name__) from None
            finally:
                if connection is not None:
                    self._put_away(connection, response)
            if status != 503:
                raise self._refusal(status, path, said)
            self._wait(since, _words(said))

    def _wait(self, since: dict[bool, float], words: str) -> None:
        """Wait a moment for a server that said 503, or give up.

        Args:
            since: when that was said first: that it is loading its model, and anything else.
        """
        loading, now = _LOADING in words.lower(), time.monotonic()
        if loading not in since:
            since[loading] = now
            self._progress.note(
                f"{self.address} is loading its model ({words}); waiting for it"
                if loading
                else f"{self.address} is not available ({words}); asking again for "
                f"{UNAVAILABLE_SECONDS:.0f} s"
            )
        if loading and now - since[loading] > LOADING_SECONDS:
            raise EnvironmentFault(
                f"{self.address} has been loading its model for {LOADING_SECONDS / 60:.0f} "
                "minutes; look at its log"
            )
        if not loading and now - since[loading] > UNAVAILABLE_SECONDS:
            raise EnvironmentFault(
                f"{self.address} has not been available for {UNAVAILABLE_SECONDS:.0f} s (status "
                f"503: {words}); look at its log, or that of a proxy before it, and run the same "
                "command again; what was answered before is kept"
            )
        time.sleep(POLL_SECONDS)

    def _sent(
        self, method: str, path: str, content: bytes | None
    ) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        """Send a request over the idle connection, or a new one where that was closed."""
        headers = {"Content-Type": "application/json", **_authorization()}
        idle, self._idle = self._idle, None
        if idle is not None and time.monotonic() - self._idle_since < IDLE_SECONDS:
            try:
                idle.request(method, path, content, headers)
                return idle, idle.getresponse()
            except ConnectionError:  # RemoteDisconnected too: the server had closed it
                idle.close()
        elif idle is not None:
            idle.close()
        connection = self._connected()
        try:
            connection.request(method, path, content, headers)
            return connection, connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            raise

    def _put_away(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse | None
    ) -> None:
        """Keep a connection whose answer was read to its end."""
        if response is not None and response.isclosed() and connection.sock is not None:
            self._idle, self._idle_since = connection, time.monotonic()
            return
        if response is not None:
            response.close()
        connection.close()

    def connection(self) -> http.client.HTTPConnection:
        """A connection to the server, not opened yet."""
        kind = http.client.HTTPSConnection if self._tls else http.client.HTTPConnection
        return kind(self._host, self._port, timeout=CONNECT_SECONDS)

    def _connected(self) -> http.client.HTTPConnection:
        connection = self.connection()
        try:
            connection.connect()
        except OSError as error:
            raise EnvironmentFault(
                f"{self.address} cannot be reached ({error}): start llama-server there, or check "
                "the address, and run the same command again"
            ) from None
        connection.sock.settimeout(SILENCE_SECONDS)
        connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEP_ALIVE.items():
            if hasattr(socket, name):
                connection.sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        return connection

    def _json(self, raw: bytes) -> Answer:
        try:
            got = json.loads(raw)
        except ValueError:
            got = None
        if not isinstance(got, dict):
            raise self.stranger(f"it answers {raw[:60]!r}, which is no JSON object")
        return got

    def _refusal(self, status: int, path: str, raw: bytes) -> QuantkitError:
        if status in (401, 403):
            return InputError(
                f"{self.address} asks for a key, or refuses that of {API_KEY_VARIABLE}: set it to "
                "one of the server's --api-key"
            )
        if status in (404, 405):
            return self.stranger(f"it has no {path}")
        try:
            error = json.loads(raw)["error"]
        except (ValueError, TypeError, KeyError):
            return self.stranger(f"{path} answers with status {status}")
        return self._refused(error)

    def _refused(self, error: object) -> QuantkitError:
        facts = error if isinstance(error, dict) else {"message": error}
        words = facts.get("message", "it gives no reason")
        if facts.get("type") == "exceed_context_size_error":
            return Refused(
                f"{self.address} refuses a prompt: {words}; start it with a longer context (-c), "
                "or check a shorter one"
            )
        if facts.get("type") == "invalid_request_error":
            return Refused(f"{self.address} refuses a request: {words}")
        return EnvironmentFault(
            f"{self.address} failed: {words}; look at its log, and run the same command again; "
            "what was answered before is kept"
        )


def _no_address(why: str) -> InputError:
    """Without the address: it may hold a password."""
    return InputError(f"the address of a llama-server is http://HOST:PORT; in this one {why}")


def _words(raw: bytes) -> str:
    """What a refusal says: its JSON message, or the beginning of whatever it is."""
    try:
        error = json.loads(raw)["error"]
        text = str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, TypeError, KeyError):
        text = raw.decode(errors="replace")
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:WORDS_CHARACTERS] or "without a word"


def _authorization() -> dict[str, str]:
    key = os.environ.get(API_KEY_VARIABLE, "")
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{API_KEY_VARIABLE} holds characters that no key has")
    return {"Authorization": f"Bearer {key}"}
