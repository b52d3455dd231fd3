"""JSON requests to a llama-server, and the errors for what goes wrong with them."""

from __future__ import annotations

import functools
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Self

from quantkit.core.answers_of_servers import ask_plainly, bound
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.core.parsing import bounded_json
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import shown

if TYPE_CHECKING:
    import httpx2

API_KEY_VARIABLE = "LLAMA_API_KEY"
CONNECT_SECONDS = 20.0
SILENCE_SECONDS = 3600.0
"""Longest silence of a server: a question may wait for a whole prefill. TCP's keep-alive notices a
server that is gone."""
LOADING_SECONDS = 3600.0
"""Longest wait for a model to be loaded: 70 GiB from a slow disk take half of it."""
UNAVAILABLE_SECONDS = 30.0
"""Longest wait for a server that answers 503 for any other reason: a restart behind a proxy."""
POLL_SECONDS = 1.0
IDLE_SECONDS = 2.0
"""A connection that was idle for less is used again; llama-server closes it after five. Thousands
of short requests over one connection each would use up this machine's ports."""
MAX_ANSWER_BYTES = 256 << 20
"""The tokens of a text for a context of 1M take 8 MiB."""
MAX_EVENT_BYTES = 8 << 20
WORDS_CHARACTERS = 200
"""Of a server's own words in our messages: a proxy's are a page of HTML."""
_LOADING = "loading model"
"""llama-server's message, in lower case, until its model is loaded; its `type` is the same for
everything that it cannot do now."""
_KEEP_ALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}

Answer = dict[str, Any]


class Refused(InputError):
    """The server understood a request and refuses it; its own words are in the message."""


class Endpoint:
    """The address of a llama-server, to be used in `with` where it is asked.

    Args:
        address: `http://HOST:PORT`, or https, with the server's --api-prefix if it has one.
        progress: gets a note while the server loads its model.

    The key that a server may ask for is read from LLAMA_API_KEY. Requests go to the server
    directly, never through a proxy, and redirects are not followed.

    Raises:
        InputError: not the address of a server.
    """

    def __init__(self, address: str, progress: Progress = SILENT) -> None:
        self._host = _host(address)
        self.address = address.rstrip("/")
        self._progress = progress

    @property
    def loopback(self) -> bool:
        """Whether the server runs on this machine, judged by its address."""
        try:
            return ip_address(self._host).is_loopback
        except ValueError:
            return self._host == "localhost"

    @functools.cached_property
    def _client(self) -> httpx2.Client:
        import httpx2

        options = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
        options += [
            (socket.IPPROTO_TCP, getattr(socket, name), value)
            for name, value in _KEEP_ALIVE.items()
            if hasattr(socket, name)
        ]
        transport = httpx2.HTTPTransport(
            socket_options=options, limits=httpx2.Limits(keepalive_expiry=IDLE_SECONDS)
        )
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        hooks: dict[str, list[Callable[..., Any]]]
        hooks = {"request": [ask_plainly], "response": [_bound]}
        return httpx2.Client(
            transport=transport, timeout=timeout, trust_env=False, event_hooks=hooks
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._client.close()

    def ask(self, method: str, path: str, body: Mapping[str, object] | None = None) -> Answer:
        """The JSON object that the server answers with.

        Raises:
            Refused: by the server.
            InputError: the key is wrong, or this is not a llama-server.
            EnvironmentFault: the server cannot be reached, or stopped.
        """
        with self._response(method, path, body) as response:
            return self._json(response.read())

    def events(self, path: str, body: Mapping[str, object]) -> Iterator[Answer]:
        """The JSON objects of a stream of events, as they come; errors as in `ask`."""
        with self._response("POST", path, body) as response:
            rest, heard = b"", time.monotonic()
            for piece in response.iter_bytes():
                *lines, rest = (rest + piece).split(b"\n")
                if len(rest) > MAX_EVENT_BYTES:
                    raise self.stranger(f"an event of more than {MAX_EVENT_BYTES >> 20} MiB")
                if time.monotonic() - heard > SILENCE_SECONDS:
                    raise self.gone(f"it only said that it is there for {SILENCE_SECONDS:.0f} s")
                for line in lines:
                    if line.startswith(b"data:"):  # others are pings, and ends of events
                        heard, event = time.monotonic(), self._json(line[5:])
                        if "error" in event:
                            raise self._refused(event["error"])
                        yield event

    def stranger(self, why: str) -> InputError:
        return InputError(
            f"{self.address} is not a llama-server that this check can use: {why}; give the "
            "address of a llama-server of 2026"
        )

    def gone(self, why: str) -> EnvironmentFault:
        return EnvironmentFault(
            f"{self.address} stopped in the middle of an answer ({why}): look at its log, start "
            "it again, and run the same command again; the answers until then are kept"
        )

    @contextmanager
    def _response(
        self, method: str, path: str, body: Mapping[str, object] | None
    ) -> Iterator[httpx2.Response]:
        """The answer to a request with status 200, after a wait for a server that still loads."""
        import httpx2

        since: dict[bool, float] = {}
        while True:
            try:
                with closing(self._sent(method, path, body)) as response:
                    if response.status_code == 200:
                        yield response
                        return
                    said = response.read()
            except httpx2.DecodingError as error:
                raise self.stranger(str(error)) from None
            except httpx2.TransportError as error:
                raise self.gone(str(error) or type(error).__name__) from None
            if response.status_code != 503:
                raise self._refusal(response.status_code, path, said)
            self._wait(since, _words(said))

    def _sent(self, method: str, path: str, body: Mapping[str, object] | None) -> httpx2.Response:
        """Send a request, a second time where the server closed an idle connection meanwhile."""
        import httpx2

        request = self._client.build_request(
            method, self.address + path, json=body, headers=_authorization()
        )
        closed: httpx2.TransportError | None = None
        while True:
            try:
                return self._client.send(request, stream=True)
            except (httpx2.RemoteProtocolError, httpx2.ReadError, httpx2.WriteError) as error:
                if closed is not None:
                    raise
                closed = error
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if closed is not None:
                    raise closed from None
                raise EnvironmentFault(
                    f"{self.address} cannot be reached ({error}): start llama-server there, or "
                    "check the address, and run the same command again"
                ) from None

    def _wait(self, since: dict[bool, float], words: str) -> None:
        """Wait a moment for a server that answered 503, or give up.

        Args:
            since: when it first said that it is loading its model, and anything else.
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
        waited = now - since[loading]
        if loading and waited > LOADING_SECONDS:
            raise EnvironmentFault(
                f"{self.address} has been loading its model for {LOADING_SECONDS / 60:.0f} "
                "minutes; look at its log"
            )
        if not loading and waited > UNAVAILABLE_SECONDS:
            raise EnvironmentFault(
                f"{self.address} has not been available for {UNAVAILABLE_SECONDS:.0f} s (status "
                f"503: {words}); look at its log, or that of a proxy before it, and run the same "
                "command again; the answers until then are kept"
            )
        time.sleep(POLL_SECONDS)

    def _json(self, raw: bytes) -> Answer:
        got = _parsed(raw)
        if got is None:
            raise self.stranger(f"its answer {raw[:60]!r} is not a JSON object")
        return got

    def _refusal(self, status: int, path: str, raw: bytes) -> QuantkitError:
        if status in (401, 403):
            return InputError(
                f"{self.address} asks for a key, or refuses the one in {API_KEY_VARIABLE}: set it "
                "to the server's --api-key"
            )
        if status in (404, 405):
            return self.stranger(f"it has no {path}")
        error = (_parsed(raw) or {}).get("error")
        if error is None:
            return self.stranger(f"{path} answers with status {status}")
        return self._refused(error)

    def _refused(self, error: object) -> QuantkitError:
        facts = error if isinstance(error, dict) else {"message": error}
        words = shown(str(facts.get("message", "it gives no reason")), WORDS_CHARACTERS)
        if facts.get("type") == "exceed_context_size_error":
            return Refused(
                f"{self.address} refuses a prompt: {words}; start it with a longer context (-c), "
                "or check a shorter one"
            )
        if facts.get("type") == "invalid_request_error":
            return Refused(f"{self.address} refuses a request: {words}")
        return EnvironmentFault(
            f"{self.address} failed: {words}; look at its log, and run the same command again; "
            "the answers until then are kept"
        )


def _bound(response: httpx2.Response) -> None:
    """The events of a prefill take hours; what is no stream is sent when it is known."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip()
    bound(response, MAX_ANSWER_BYTES, None, steady=kind != "text/event-stream")


def _host(address: str) -> str:
    import httpx2

    try:
        url = httpx2.URL(address)
        url.raw_host.decode().encode("idna")
    except (httpx2.InvalidURL, UnicodeError):
        raise _no_address("host or port is not valid") from None
    faults = {
        "http:// or the host is missing": url.scheme not in ("http", "https") or not url.host,
        "the port is above 65535": url.port is not None and url.port > 65535,
        f"is a user's name; put a key into {API_KEY_VARIABLE}": url.userinfo,
        "is a ? or a #, and what follows would not be sent": "?" in address or "#" in address,
        "the path has characters that must be escaped": url.raw_path.decode() not in address + "/",
    }
    for why, wrong in faults.items():
        if wrong:
            raise _no_address(why)
    return url.host


def _no_address(why: str) -> InputError:
    return InputError(f"the address of a llama-server is http://HOST:PORT; in this one {why}")


def _parsed(raw: bytes) -> Answer | None:
    try:
        got = bounded_json(raw, "the answer", foreign=True)
    except InputError:
        return None
    return got if isinstance(got, dict) else None


def _words(raw: bytes) -> str:
    """The message of a refusal: that of its JSON, or the beginning of whatever it is."""
    error = (_parsed(raw) or {}).get("error")
    if isinstance(error, dict):
        error = error.get("message")
    text = raw.decode(errors="replace") if error is None else str(error)
    printable = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(printable.split())[:WORDS_CHARACTERS] or "without a message"


def _authorization() -> dict[str, str]:
    key = os.environ.get(API_KEY_VARIABLE, "")
    if not key:
        return {}
    if not (key.isascii() and key.isprintable()):
        raise InputError(f"{API_KEY_VARIABLE} holds characters that a key cannot have")
    return {"Authorization": f"Bearer {key}"}
