"""Reading from the Hub: the files of a repository, and their bytes from any position.

huggingface_hub's downloads do not resume after a kill (each begins a new temporary file, and with
Xet every time), so bytes are read here with Range requests, which the Hub answers for every kind
of storage.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quantkit.core.answers_of_servers import LEAST_BYTES_PER_SECOND, RATE_SECONDS
from quantkit.core.errors import EnvironmentFault
from quantkit.core.units import shown
from quantkit.hub.connection import Connection, ignore, session
from quantkit.hub.errors import Asked, RepositoryKind

if TYPE_CHECKING:
    from huggingface_hub import DatasetInfo, ModelInfo


COMMIT_TIMEOUT_S = 3.0
"""Longest silence of the server when an earlier answer will do."""


@dataclass(frozen=True)
class HubFile:
    """A file as the Hub records it.

    Attributes:
        sha256: of a file in LFS or Xet storage, as large files are.
        blob_id: git object id of any other: SHA-1 of `blob SIZE`, a NUL and the content.
    """

    name: str
    size_bytes: int
    sha256: str | None
    blob_id: str | None

    @property
    def identity(self) -> str:
        """The recorded hash with its kind; equal for equal contents."""
        return f"sha256:{self.sha256}" if self.sha256 else f"git:{self.blob_id}"


@dataclass(frozen=True)
class Listing:
    """All files of a repository at one commit.

    Attributes:
        repository: OWNER/NAME as the Hub spells it: it takes capitals for small letters.
        licence: the tags of its card; None if it states none.
        card: the metadata of its README.md; anybody may have written it.
        gated: how access is granted, `auto` or `manual`; False: to all; None: unknown.
    """

    repository: str
    commit: str
    files: tuple[HubFile, ...]
    kind: RepositoryKind = "model"
    licence: str | None = None
    card: Mapping[str, object] = field(default_factory=dict)
    gated: str | bool | None = None
    private: bool = False


class Hub(Connection):
    """A client of the Hub at `endpoint`; safe to use from several threads.

    The methods raise InputError where there is no such repository or revision, or the Hub refuses,
    and say what to do; EnvironmentFault where the network or the Hub failed. `on_wait` gets a
    sentence with the reason and the length of each wait.
    """

    request_bytes = 16 << 30
    """Limit of one request: the Hub's content network refuses answers above 50 GB."""

    def listing(
        self,
        repository: str,
        revision: str | None = None,
        on_wait: Callable[[str], None] = ignore,
        kind: RepositoryKind = "model",
    ) -> Listing:
        """The files of `repository` at `revision` (a branch, tag or commit; by default `main`)."""
        asked = self.asked(repository, revision, kind)
        info = self._described(asked, on_wait, files_metadata=True)
        found = []
        for sibling in info.siblings or ():
            sha256 = sibling.lfs.sha256 if sibling.lfs else None
            size = sibling.lfs.size if sibling.lfs else sibling.size
            file = HubFile(sibling.rfilename, size, sha256, sibling.blob_id)  # type: ignore[arg-type]
            if not _is_recorded(file):
                raise EnvironmentFault(
                    f"{asked.endpoint} gives no valid size or hash of {shown(str(file.name))}, so "
                    "a download could not be verified; unset HF_ENDPOINT if it is a mirror"
                )
            found.append(file)
        if len({file.name for file in found}) < len(found):
            raise EnvironmentFault(f"{asked.endpoint} lists a file of {asked.name} twice")
        return Listing(
            name_of(info.id or repository, asked),
            commit_of(info.sha, asked),
            tuple(found),
            kind,
            licence_of(info.card_data),
            card_of(info.card_data),
            info.gated if info.gated in (True, False, "auto", "manual") else None,
            bool(info.private),
        )

    def commit(
        self,
        repository: str,
        revision: str | None = None,
        on_wait: Callable[[str], None] = ignore,
        *,
        at_once: bool = False,
    ) -> str:
        """The commit of `revision` of a model now: one small request.

        Args:
            at_once: try once, and for `COMMIT_TIMEOUT_S` at most: an earlier commit will do.
        """
        asked = self.asked(repository, revision)
        info = self._described(asked, on_wait, at_once=at_once, expand=["sha"])
        return commit_of(info.sha, asked)

    def _described(
        self,
        asked: Asked,
        on_wait: Callable[[str], None],
        *,
        at_once: bool = False,
        **wanted: Any,  # noqa: ANN401 - the client's own arguments
    ) -> ModelInfo | DatasetInfo:
        """The Hub's record of a repository."""
        api = self.api()
        describe = api.dataset_info if asked.kind == "dataset" else api.model_info
        wanted |= {"timeout": min(self.timeout_s, COMMIT_TIMEOUT_S) if at_once else self.timeout_s}
        return self.call(
            asked,
            lambda: describe(asked.repository, revision=asked.revision, **wanted),
            on_wait,
            () if at_once else None,
        )

    def read(
        self,
        listing: Listing,
        file: HubFile,
        start: int = 0,
        on_wait: Callable[[str], None] = ignore,
        stop: int | None = None,
    ) -> Iterator[bytes]:
        """The bytes of `file` from position `start` to `stop`, by default its end, in pieces.

        A lost, stalled or slow connection is resumed where it broke off, as long as bytes come at
        LEAST_BYTES_PER_SECOND.
        """
        import httpx2

        position, delays_s = start, iter(self.delays_s)
        end = file.size_bytes if stop is None else min(stop, file.size_bytes)
        asked = self.asked(listing.repository, listing.commit, listing.kind)
        with self.explained(asked):
            while position < end:
                before, began = position, time.monotonic()
                fault: Exception = OSError(f"byte {position} of {file.size_bytes} did not come")
                try:
                    for piece in self._request(listing, file, position, end):
                        position += len(piece)
                        yield piece
                except (httpx2.HTTPError, OSError) as error:
                    if not self.is_transient(error):
                        raise
                    fault = error
                seconds = time.monotonic() - began - RATE_SECONDS / 2  # a lost one may be short
                least = LEAST_BYTES_PER_SECOND * seconds
                if position == end or position - before > max(least, 0):
                    delays_s = iter(self.delays_s)
                else:
                    self.wait(fault, next(delays_s, None), lambda s: on_wait(f"{file.name}: {s}"))

    def _request(self, listing: Listing, file: HubFile, position: int, end: int) -> Iterator[bytes]:
        """The pieces of one answer, from `position` on and not beyond `end`."""
        from huggingface_hub import hf_hub_url, hf_raise_for_status

        stop = min(position + self.request_bytes, end)
        url = hf_hub_url(
            listing.repository,
            file.name,
            repo_type=listing.kind,
            revision=listing.commit,
            endpoint=self.endpoint,
        )
        headers = self.headers | {"Range": f"bytes={position}-{stop - 1}"}
        answer = session().stream("GET", url, headers=headers, timeout=self.timeout_s)
        with answer as response:
            if response.status_code >= 400:
                response.read()  # the error's words
            hf_raise_for_status(response)
            skip = position  # the server ignored Range
            if response.status_code == 206:
                begins = response.headers.get("Content-Range", "").removeprefix("bytes ")
                if begins.partition("-")[0] != str(position):
                    raise OSError(f"the server answers {begins!r} to a request from {position}")
                skip = 0
            for received in response.iter_bytes():
                piece = received[skip:][: stop - position]
                skip = max(skip - len(received), 0)
                position += len(piece)
                if piece:
                    yield piece
                if position >= stop:
                    return


LICENCE_CHARACTERS = 200
_COMMIT = re.compile("[0-9a-f]{40}")
_SHA256 = re.compile("[0-9a-f]{64}")
_NAME = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
MOST_FILE_BYTES = 1 << 50


def _is_recorded(file: HubFile) -> bool:
    """Whether a record has types and values that a file can have."""
    return (
        isinstance(file.name, str)
        and bool(file.name)
        and type(file.size_bytes) is int
        and 0 <= file.size_bytes <= MOST_FILE_BYTES
        and all(
            hashed is None or (isinstance(hashed, str) and form.fullmatch(hashed) is not None)
            for hashed, form in ((file.sha256, _SHA256), (file.blob_id, _COMMIT))
        )
        and (file.sha256 or file.blob_id) is not None
    )


def name_of(repository: object, asked: Asked) -> str:
    """The repository that the Hub names, checked: it enters journals and the names of files.

    Raises:
        EnvironmentFault: it is no name.
    """
    if not isinstance(repository, str) or not _NAME.fullmatch(repository):
        raise EnvironmentFault(
            f"{asked.endpoint} names {shown(str(repository))!r} as {asked.name}; check HF_ENDPOINT"
        )
    return repository


def is_commit(text: str) -> bool:
    """Whether `text` is a full commit hash, which becomes the name of a folder."""
    return _COMMIT.fullmatch(text) is not None


def commit_of(sha: object, asked: Asked) -> str:
    """The commit that the Hub names, checked.

    Raises:
        EnvironmentFault: it is not a commit.
    """
    if not isinstance(sha, str) or not is_commit(sha):
        raise EnvironmentFault(
            f"{asked.endpoint} names {shown(str(sha))!r} as a commit of {asked.name}; "
            "check HF_ENDPOINT"
        )
    return sha


def licence_of(card: object) -> str | None:
    """The licence that a card states: tags of the Hub, and for "other" the name of its own.

    Args:
        card: the metadata of README.md as attributes.
    """
    stated = getattr(card, "license", None)
    tags = [str(tag or "") for tag in (stated if isinstance(stated, list) else [stated])]
    own = getattr(card, "license_name", None)
    words = [f"other ({own})" if tag == "other" and own else tag for tag in tags]
    shown = "".join(c for c in ", ".join(filter(None, words)) if c.isprintable())
    return shown[:LICENCE_CHARACTERS] or None


def card_of(card: object) -> dict[str, object]:
    """The metadata of a README.md as plain values; empty if there is none."""
    found = card.to_dict() if hasattr(card, "to_dict") else None
    return found if isinstance(found, dict) else {}
