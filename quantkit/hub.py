"""The Hugging Face Hub: what a repository holds, and its files' bytes from any position on.

The only importer of huggingface_hub, which knows addresses, tokens, headers and errors. Its own
downloads cannot go on after a kill (each begins a new temporary file, and with Xet every time), so
bytes are read here with Range requests, which the Hub answers for every kind of storage.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantkit.errors import EnvironmentFault, InputError
from quantkit.hub_answers import commit_of, first_byte_offset, licence_of
from quantkit.hub_errors import (
    Asked,
    Refusal,
    RepositoryKind,
    failed,
    no_address,
    no_token,
    offline,
    refusal_error,
)

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo

REQUEST_BYTES = 16 << 30
"""Most bytes of one request: the Hub's content network refuses answers above 50 GB."""
DELAYS_S = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 60.0)
"""Waits between attempts that brought nothing; three minutes outlast a router's restart."""
LONGEST_WAIT_S = 300.0
"""Longest wait that a server is granted; the Hub counts requests in windows of five minutes."""
COMMIT_TIMEOUT_S = 3.0
"""Longest silence of the server where an earlier answer may stand in for its own."""
_LISTING_ATTEMPTS = 4
_HUB_HOSTS = ("huggingface.co", "hf.co")
_TOKEN = re.compile(r"[\x21-\x7e]+")


def _ignore(sentence: str) -> None:
    pass


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub records it.

    Attributes:
        sha256: of its content, where it is stored with LFS or Xet, as large files are.
        blob_id: its git object id where it is not: SHA-1 of `blob SIZE`, a NUL and the content.
    """

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def identity(self) -> str:
        """The recorded hash with its kind; equal where the contents are."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.blob_id}"


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit.

    Attributes:
        repository: OWNER/NAME as the Hub spells it: it takes capitals for small letters.
        licence: the tags of its card, as they are there; None where it states none.
    """

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    kind: RepositoryKind = "model"
    licence: str | None = None


class Hub:
    """A client of the Hub at `endpoint`; safe to use from several threads.

    Args:
        endpoint: address; HF_ENDPOINT or huggingface.co by default.
        token: an access token; None for the one that `hf auth login` or HF_TOKEN left, False for
            none.
        timeout_s: longest silence of the server, seconds; HF_HUB_DOWNLOAD_TIMEOUT by default.
        delays_s: waits before each further attempt when an attempt brought nothing.
        request_bytes: most bytes to ask for at once.

    Raises:
        InputError: `endpoint` is no address, or the token holds what no token does.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | bool | None = None,
        timeout_s: float | None = None,
        delays_s: Sequence[float] = DELAYS_S,
        request_bytes: int = REQUEST_BYTES,
    ) -> None:
        for address in (os.environ.get("HF_ENDPOINT"), endpoint):
            _check_address(address)  # first: the client fails on importing it
        from huggingface_hub import constants
        from huggingface_hub.utils._headers import build_hf_headers  # utils names it in no __all__

        from quantkit import __version__

        # its warnings would run into the progress bar
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self._endpoint = endpoint or constants.ENDPOINT
        self._timeout_s = timeout_s or constants.HF_HUB_DOWNLOAD_TIMEOUT
        self._delays_s = tuple(delays_s)
        self._request_bytes = request_bytes
        try:
            headers = build_hf_headers(
                token=token, library_name="quantkit", library_version=__version__
            )
        except ValueError:  # the file of the token is not text
            raise no_token() from None
        self._token = headers.get("authorization", "").removeprefix("Bearer ")
        if self._token and not _TOKEN.fullmatch(self._token):
            raise no_token()
        # compressed answers know no Range
        self._headers = headers | {"Accept-Encoding": "identity"}

    def listing(
        self,
        repository: str,
        revision: str | None = None,
        on_wait: Callable[[str], None] = _ignore,
        kind: RepositoryKind = "model",
    ) -> Listing:
        """The files of `repository` at `revision` (a branch, tag or commit; by default `main`).

        Args:
            on_wait: see `read`.

        Raises:
            InputError: no such repository or revision, or the Hub refuses; says what to do.
            EnvironmentFault: the network or the Hub failed.
        """
        asked = Asked(self._endpoint, repository, revision, bool(self._token), kind)
        delays_s = self._delays_s[: _LISTING_ATTEMPTS - 1]
        info = self._described(asked, self._timeout_s, delays_s, on_wait, files_metadata=True)
        found = []
        for sibling in info.siblings or ():
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            size = sibling.lfs.size if sibling.lfs else sibling.size
            if size is None or not (sha256 or sibling.blob_id):
                raise EnvironmentFault(
                    f"{self._endpoint} gives no size or hash of {sibling.rfilename}, so a download "
                    "could not be verified; unset HF_ENDPOINT if it is a mirror"
                )
            found.append(HubFile(sibling.rfilename, size, sha256, sibling.blob_id))
        licence = licence_of(info.card_data)
        return Listing(
            info.id or repository, commit_of(info.sha, asked), tuple(found), kind, licence
        )

    def commit(
        self,
        repository: str,
        revision: str | None = None,
        on_wait: Callable[[str], None] = _ignore,
        *,
        at_once: bool = False,
    ) -> str:
        """The commit of `revision` of a model now: one small request.

        Args:
            on_wait: see `read`.
            at_once: try once, and for `COMMIT_TIMEOUT_S` at most: an earlier commit will do.

        Raises:
            InputError: no such repository or revision, or the Hub refuses; says what to do.
            EnvironmentFault: the network or the Hub failed.
        """
        asked = Asked(self._endpoint, repository, revision, bool(self._token))
        timeout_s = min(self._timeout_s, COMMIT_TIMEOUT_S) if at_once else self._timeout_s
        delays_s = () if at_once else self._delays_s[: _LISTING_ATTEMPTS - 1]
        info = self._described(asked, timeout_s, delays_s, on_wait, expand=["sha"])
        return commit_of(info.sha, asked)

    def _described(
        self,
        asked: Asked,
        timeout_s: float,
        delays_s: Sequence[float],
        on_wait: Callable[[str], None],
        **wanted: Any,  # noqa: ANN401 - the client's own arguments
    ) -> ModelInfo | DatasetInfo:
        """What the Hub says of a repository."""
        import httpx2
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HFValidationError

        api = HfApi(endpoint=self._endpoint, token=self._token or False)
        describe = api.dataset_info if asked.kind == "dataset" else api.model_info
        with self._explained(asked):
            for delay_s in (*delays_s, None):
                try:
                    return describe(
                        asked.repository, revision=asked.revision, timeout=timeout_s, **wanted
                    )
                except HFValidationError as error:
                    raise InputError(
                        f"{asked.repository!r} is no name of a repository; give OWNER/NAME or "
                        f"OWNER/NAME@REVISION ({self._words(error)})"
                    ) from None
                except (httpx2.HTTPError, OSError) as error:
                    self._wait(error, delay_s, on_wait)
                except (ValueError, KeyError, TypeError) as error:
                    raise EnvironmentFault(
                        f"{self._endpoint} answers with something that is no record of a "
                        f"repository ({type(error).__name__}); check HF_ENDPOINT, and whether the "
                        "network wants a login"
                    ) from None
        raise AssertionError("unreachable")

    def read(
        self,
        listing: Listing,
        file: HubFile,
        start: int = 0,
        on_wait: Callable[[str], None] = _ignore,
        stop: int | None = None,
    ) -> Iterator[bytes]:
        """The bytes of `file` from position `start` to `stop`, by default its end, in pieces.

        A lost or stalled connection is taken up again where it broke off. Of a server that ignores
        Range, nothing beyond `stop` is received but what was under way already.

        Args:
            on_wait: told, in a sentence, why and for how long is waited before a further attempt.

        Raises:
            InputError: the repository is gated, or the token is refused; says what to do.
            EnvironmentFault: no more bytes came in spite of all attempts.
        """
        import httpx2

        position, delays_s = start, iter(self._delays_s)
        end = file.size_bytes if stop is None else min(stop, file.size_bytes)
        asked = Asked(
            self._endpoint, listing.repository, listing.commit, bool(self._token), listing.kind
        )
        with self._explained(asked):
            while position < end:
                before = position
                fault: Exception = OSError(f"byte {position} of {file.size_bytes} never came")
                try:
                    for piece in self._request(listing, file, position, end):
                        position += len(piece)
                        yield piece
                except (httpx2.HTTPError, OSError) as error:
                    if not self._is_transient(error):
                        raise
                    fault = error
                if position > before:
                    delays_s = iter(self._delays_s)
                else:
                    self._wait(fault, next(delays_s, None), lambda s: on_wait(f"{file.name}: {s}"))

    def _request(self, listing: Listing, file: HubFile, position: int, end: int) -> Iterator[bytes]:
        """The pieces of one answer, from `position` on and not beyond `end`."""
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status

        stop = min(position + self._request_bytes, end)
        url = hf_hub_url(
            listing.repository,
            file.name,
            repo_type=listing.kind,
            revision=listing.commit,
            endpoint=self._endpoint,
        )
        headers = self._headers | {"Range": f"bytes={position}-{stop - 1}"}
        answer = get_session().stream("GET", url, headers=headers, timeout=self._timeout_s)
        with answer as response:
            if response.status_code >= 400:
                response.read()  # the error's words
            hf_raise_for_status(response)
            skip = first_byte_offset(response.status_code, response.headers, position)
            for received in response.iter_bytes():
                piece = received[skip:][: stop - position]
                skip = max(skip - len(received), 0)
                position += len(piece)
                if piece:
                    yield piece
                if position >= stop:
                    return

    @contextmanager
    def _explained(self, asked: Asked) -> Iterator[None]:
        """Turn the client's errors into ours."""
        import httpx2
        from huggingface_hub.errors import OfflineModeIsEnabled

        try:
            yield
        except OfflineModeIsEnabled:
            raise offline(asked) from None
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            refusal = self._refusal(error)
            if refusal is None:
                raise failed(self._words(error), asked) from None
            raise refusal_error(refusal, asked) from None

    def _wait(
        self, error: Exception, delay_s: float | None, on_wait: Callable[[str], None]
    ) -> None:
        """Wait before another attempt, or raise `error` where there is to be none."""
        if not self._is_transient(error) or delay_s is None:
            raise error
        refusal = self._refusal(error)
        if refusal is not None:
            delay_s = max(delay_s, refusal.asked_wait_s)
        on_wait(f"{self._words(error)}; trying again in {delay_s:g} s")
        time.sleep(delay_s)

    def _is_transient(self, error: Exception) -> bool:
        """Whether the same request may succeed later: a fault of the network or a busy server."""
        import httpx2

        refusal = self._refusal(error)
        if refusal is not None:
            return refusal.is_transient
        if isinstance(error, httpx2.UnsupportedProtocol):
            return False
        return isinstance(error, httpx2.TransportError) or type(error) is OSError

    def _refusal(self, error: Exception) -> Refusal | None:
        """What the server answered, where it answered at all."""
        import httpx2
        from huggingface_hub.errors import HfHubHTTPError

        if not isinstance(error, HfHubHTTPError):
            return None
        answer, home = error.response, httpx2.URL(self._endpoint)
        host = answer.url.host
        return Refusal(
            status=answer.status_code,
            code=answer.headers.get("X-Error-Code", ""),
            message=self._without_token(answer.headers.get("X-Error-Message", "")),
            address=str(answer.url.copy_with(query=None)),
            is_hub=(host, answer.url.port) == (home.host, home.port) or host in _HUB_HOSTS,
            asked_wait_s=_asked_wait_s(answer.headers),
        )

    def _words(self, error: Exception) -> str:
        """An error in a few words: the client's own take several lines."""
        refusal = self._refusal(error)
        if refusal is not None:
            return f"HTTP {refusal.status}"
        lines = self._without_token(str(error)).strip().splitlines()
        return lines[0] if lines else type(error).__name__

    def _without_token(self, text: str) -> str:
        return text.replace(self._token, "<token>") if self._token else text


def _check_address(address: str | None) -> None:
    import httpx2

    if not address:
        return
    try:
        url = httpx2.URL(address)
    except httpx2.InvalidURL:
        raise no_address(address) from None
    if url.scheme not in ("http", "https") or not url.host:
        raise no_address(address)


def _asked_wait_s(headers: Mapping[str, str]) -> float:
    """For how long the server wants to be left alone, in the form of all servers or the Hub's."""
    from huggingface_hub.utils._http import parse_ratelimit_headers

    asked = headers.get("Retry-After", "")
    if asked.isdecimal():
        return min(float(asked), LONGEST_WAIT_S)
    limit = parse_ratelimit_headers(headers)
    if limit is None or limit.remaining > 0:  # said with every answer
        return 0.0
    return min(limit.reset_in_seconds + 1.0, LONGEST_WAIT_S)
