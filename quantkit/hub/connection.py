"""A connection to the Hub: address, token, retries, and our errors for the client's."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from quantkit.core.answers_of_servers import ask_plainly, bound
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.units import shown
from quantkit.hub.errors import (
    LOG_IN,
    Asked,
    Purpose,
    Refusal,
    RepositoryKind,
    failed,
    refusal_error,
)

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import HfApi


DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
"""Waits between failed attempts; three minutes outlast a router's restart."""
LONGEST_WAIT_S = 300.0
"""Longest wait that a server may ask for; the Hub counts requests in windows of five minutes."""
CALL_RETRIES = 4
"""Of a call of the API; reading a file goes on as long as bytes come."""
MOST_BYTES = 64 << 20
"""Of an answer that is no file; the record of a repository of 100,000 files has 40 MB."""
MOST_SECONDS = 300.0
TIMEOUTS = ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")
_LIBRARY = "quantkit"
"""Begins the User-Agent of our requests: the client may also be used by a program that calls us."""
_Answer = TypeVar("_Answer")
_HUB_HOSTS = ("huggingface.co", "hf.co")
_TOKEN = re.compile(r"[\x21-\x7e]+")


def ignore(sentence: str) -> None:
    """Discard a message."""


class Connection:
    """Address, token and retries of reading and writing; safe to use from several threads.

    Args:
        endpoint: address; HF_ENDPOINT or huggingface.co by default.
        token: an access token; None for the one that `hf auth login` or HF_TOKEN left, False for
            none.
        timeout_s: longest silence of the server, seconds; HF_HUB_DOWNLOAD_TIMEOUT by default.
        delays_s: waits before each further attempt after one without any bytes.
        purpose: named in errors.

    Raises:
        InputError: `endpoint` is not an address, or the token holds invalid characters.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | bool | None = None,
        timeout_s: float | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        purpose: Purpose = "download",
    ) -> None:
        for address in (os.environ.get("HF_ENDPOINT"), endpoint):
            _check_address(address)  # first: the client fails on importing it
        check_timeouts()
        from huggingface_hub import constants
        from huggingface_hub.utils import build_hf_headers

        from quantkit import __version__

        # its warnings would run into the progress bar
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        # the token is a secret: `without_token` takes it out of what others say
        self.endpoint = (endpoint or constants.ENDPOINT).rstrip("/")
        self.timeout_s = timeout_s or constants.HF_HUB_DOWNLOAD_TIMEOUT
        self.delays_s, self.purpose = tuple(delays_s), purpose
        try:
            headers = build_hf_headers(
                token=token, library_name=_LIBRARY, library_version=__version__
            )
        except ValueError:  # the file of the token is not text
            headers = {"authorization": "invalid token"}
        self.token = headers.get("authorization", "").removeprefix("Bearer ")
        if self.token and not _TOKEN.fullmatch(self.token):  # a secret, so it is not shown
            raise InputError(
                "your access token for the Hub holds characters that no token has, perhaps from "
                f"copying: copy it again, then {LOG_IN}"
            )
        self.headers = headers

    def api(self) -> HfApi:
        """The client itself, with this address and token."""
        from huggingface_hub import HfApi

        from quantkit import __version__

        return HfApi(
            endpoint=self.endpoint,
            token=self.token or False,
            library_name=_LIBRARY,
            library_version=__version__,
        )

    def asked(
        self,
        repository: str,
        revision: str | None,
        kind: RepositoryKind = "model",
        purpose: Purpose | None = None,
    ) -> Asked:
        """A request as errors describe it."""
        has_token, purpose = bool(self.token), purpose or self.purpose
        return Asked(self.endpoint, repository, revision, has_token, kind, purpose)

    @contextmanager
    def explained(self, asked: Asked) -> Iterator[None]:
        """Replace the client's errors with ours."""
        import httpx2
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled:
            raise EnvironmentFault(
                f"{asked.doing} needs the network, and HF_HUB_OFFLINE is set: unset it, "
                "or give a model's folder"
            ) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            refusal = self.refusal(error)
            if refusal is None:
                raise failed(self.words(error), asked) from None
            raise refusal_error(refusal, asked) from None

    def call(
        self,
        asked: Asked,
        act: Callable[[], _Answer],
        on_wait: Callable[[str], None] = ignore,
        delays_s: Sequence[float] | None = None,
    ) -> _Answer:
        """Call the client through `act`, again after a wait where a fault may pass.

        Args:
            on_wait: gets a sentence with the reason and the length of each wait.
            delays_s: waits before further attempts; by default at most `CALL_RETRIES`.

        Raises:
            InputError: the Hub refuses, or the repository's id is not valid.
            EnvironmentFault: the network or the Hub failed, or did not answer as the Hub does.
        """
        import httpx2
        from huggingface_hub.errors import HFValidationError

        waits = self.delays_s[:CALL_RETRIES] if delays_s is None else delays_s
        with self.explained(asked):
            for delay_s in (*waits, None):
                try:
                    session()
                    return act()
                except HFValidationError as error:
                    raise InputError(
                        f"Invalid repository id {asked.repository!r}: expected OWNER/NAME or "
                        f"OWNER/NAME@REVISION ({self.words(error)})"
                    ) from None
                except (httpx2.HTTPError, OSError) as error:
                    self.wait(error, delay_s, on_wait)
                except (
                    RuntimeError, ValueError, LookupError, TypeError, AttributeError,
                    ArithmeticError, AssertionError,
                ) as error:  # fmt: skip
                    cause = error.__cause__  # the client wraps what ended an upload
                    if not isinstance(cause, httpx2.HTTPError | OSError):
                        raise EnvironmentFault(
                            f"{self.endpoint} does not answer as the Hub does "
                            f"({type(error).__name__}: {self.words(error)}); check HF_ENDPOINT, "
                            "and whether the network wants a login"
                        ) from None
                    self.wait(cause, delay_s, on_wait)
        raise AssertionError("unreachable")

    def wait(self, error: Exception, delay_s: float | None, on_wait: Callable[[str], None]) -> None:
        """Wait before another attempt, or raise `error` if there is none."""
        if not self.is_transient(error) or delay_s is None:
            raise error
        refusal = self.refusal(error)
        if refusal is not None:
            delay_s = max(delay_s, refusal.asked_wait_s)
        on_wait(f"{self.words(error)}; trying again in {delay_s:g} s")
        time.sleep(delay_s)

    def is_transient(self, error: Exception) -> bool:
        """Whether the same request may succeed later: a fault of the network or a busy server."""
        import httpx2

        refusal = self.refusal(error)
        if refusal is not None:
            return refusal.is_transient
        if isinstance(error, httpx2.UnsupportedProtocol):
            return False
        return isinstance(error, httpx2.TransportError) or type(error) is OSError

    def refusal(self, error: Exception) -> Refusal | None:
        """The server's answer behind `error`; None if it did not answer."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        if not isinstance(error, HfHubHTTPError):
            return None
        answer, home = error.response, httpx2.URL(self.endpoint)
        host = answer.url.host
        return Refusal(
            status=answer.status_code,
            code=answer.headers.get("X-Error-Code", ""),
            message=self.without_token(answer.headers.get("X-Error-Message", "")),
            address=str(answer.url.copy_with(query=None)),
            is_hub=(host, answer.url.port) == (home.host, home.port) or host in _HUB_HOSTS,
            asked_wait_s=_asked_wait_s(answer.headers),
        )

    def words(self, error: Exception) -> str:
        """The first line of an error; the client's have several."""
        refusal = self.refusal(error)
        if refusal is not None:
            return f"HTTP {refusal.status}"
        lines = self.without_token(str(error)).strip().splitlines()
        return lines[0] if lines else type(error).__name__

    def without_token(self, text: str) -> str:
        return text.replace(self.token, "<token>") if self.token else text


def check_timeouts() -> None:
    """See that the client, which transformers imports too, can read the timeouts that are set.

    Raises:
        InputError: one is no number of seconds.
    """
    for name in TIMEOUTS:
        seconds = os.environ.get(name, "")
        if seconds and not (seconds.isascii() and seconds.isdecimal() and len(seconds) < 7):
            raise InputError(
                f"{name} is {shown(seconds)!r}, which is no number of seconds; unset it"
            )


def session() -> httpx2.Client:
    """The client's session, which may be new, with limits of the answers to our requests."""
    from huggingface_hub import get_session

    found = get_session()
    for event, hook in (("request", _plainly), ("response", _bound)):
        if hook not in found.event_hooks[event]:
            found.event_hooks[event].append(hook)
    return found


def _is_ours(request: httpx2.Request) -> bool:
    return request.headers.get("User-Agent", "").startswith(f"{_LIBRARY}/")


def _plainly(request: httpx2.Request) -> None:
    if _is_ours(request):
        ask_plainly(request)


def _bound(response: httpx2.Response) -> None:
    """A part of a file is read as far as it was asked for; anything else has a limit."""
    if _is_ours(response.request):
        of_file = "Range" in response.request.headers and response.status_code in (200, 206)
        limits = (None, None) if of_file else (MOST_BYTES, MOST_SECONDS)
        bound(response, *limits, steady=True)


def _check_address(address: str | None) -> None:
    import httpx2

    if not address:
        return
    try:
        url = httpx2.URL(address)
        valid = url.scheme in ("http", "https") and bool(url.host)
    except httpx2.InvalidURL:
        valid = False
    if not valid:
        raise InputError(
            f"Invalid address of a hub {address!r}: expected one such as https://huggingface.co; "
            "unset HF_ENDPOINT to use the default"
        )


def _asked_wait_s(headers: Mapping[str, str]) -> float:
    """How long the server asks to wait, in the standard header or the Hub's, seconds."""
    from huggingface_hub.utils import parse_ratelimit_headers

    asked = headers.get("Retry-After", "")
    if asked.isdecimal():
        return min(float(asked), LONGEST_WAIT_S)
    limit = parse_ratelimit_headers(headers)
    if limit is None or limit.remaining > 0:  # said with every answer
        return 0.0
    return min(limit.reset_in_seconds + 1.0, LONGEST_WAIT_S)


def known_tokens() -> tuple[str, ...]:
    """HF_TOKEN and every token that `hf auth login` has stored; they are secrets."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import get_stored_tokens

    try:
        found = {get_token() or "", *get_stored_tokens().values()}
    except ValueError:  # a file of tokens that is not text holds none
        found = set()
    return tuple(sorted(found - {""}))
