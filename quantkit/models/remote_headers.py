"""A checkpoint on the Hub without its weights: small files, and the header of every shard.

Planning needs no more. Everything is kept in the user's cache, so the next plan makes one small
request for the branch's commit, and needs none if the Hub cannot be reached:

    OWNER--NAME/revisions/REVISION.json   the commit of a revision at the last request
    OWNER--NAME/COMMIT/headers.json       the files of this commit and their sizes
    OWNER--NAME/COMMIT/checkpoint/        configuration, tokenizer, chat templates, model card
    OWNER--NAME/COMMIT/headers/           SHARD.header: the first bytes of each safetensors file
    OWNER--NAME/COMMIT.partial/           an unfinished download; renamed when it is complete
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from pydantic import NonNegativeInt

from quantkit.core.documents import JsonDocument
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import atomic, is_inner_path, write_json
from quantkit.core.parsing import own_json
from quantkit.core.paths import cache_folder
from quantkit.core.progress import Progress
from quantkit.core.threads import run_all
from quantkit.core.work_folders import resumable
from quantkit.formats.safetensors_files import (
    LENGTH_BYTES,
    MAX_HEADER_BYTES,
    SafetensorsHeader,
    header_bytes,
    parse_header,
)
from quantkit.hub.downloads import cached_file
from quantkit.hub.reading import Hub, HubFile, Listing, is_commit
from quantkit.models.download import ThreadsProgress
from quantkit.models.remote import READ_BY_CONVERSION, look_up, matches, read_small

FIRST_BYTES = 256 << 10
"""Size of the first request for a shard; headers of 5 GB shards have 90 to 120 kB."""
WORKERS = 8
"""Files at a time."""
_WEIGHTS = ".safetensors"
_RECORD = "headers.json"
_CHECKPOINT = "checkpoint"
"""The folder's name may enter the metadata, so it is the one that builds use."""


class _Record(JsonDocument):
    """headers.json: sizes of the cached files, and of the shards on the Hub.

    After an increase of its version cached headers are fetched again.
    """

    version: Literal[2] = 2
    repository: str
    files: dict[str, NonNegativeInt]
    shards: dict[str, NonNegativeInt]


@dataclass(frozen=True)
class RemoteHeaders:
    """The complete headers and small files of a checkpoint at one commit.

    Attributes:
        folder: of this commit in the cache.
        shard_bytes: name of each safetensors file → its size on the Hub.
    """

    repository: str
    commit: str
    folder: Path
    shard_bytes: Mapping[str, int]

    @property
    def checkpoint(self) -> Path:
        """The folder with all files except the weights."""
        return self.folder / _CHECKPOINT

    def open_shards(self) -> Iterator[SafetensorsHeader]:
        """Every safetensors file of the checkpoint.

        Raises:
            InputError: a header was changed since its download, or removed.
        """
        origin = f"{self.repository}@{self.commit}"
        advice = f"delete {self.folder}, and it is fetched again"
        for name, size in self.shard_bytes.items():
            try:
                start = _first_bytes(self.folder / _place(name))
            except OSError as error:
                raise InputError(
                    f"a header of {origin} cannot be read: {error.strerror}; run the command again"
                ) from None
            yield SafetensorsHeader(name, start, size, origin, advice)


def fetch_headers(
    hub: Callable[[], Hub],
    repository: str,
    revision: str | None,
    progress: Progress,
    cache: Path | None = None,
) -> RemoteHeaders:
    """Everything of a checkpoint on the Hub except its weights, fetched if it is not cached.

    A second run resumes.

    Args:
        hub: makes the client; not called for a cached commit.
        progress: counts files, and is told when the Hub cannot be reached, so that the last known
            commit is used.
        cache: the user's by default.

    Raises:
        InputError: as `look_up`, a header is wrong, or another run is fetching the same.
        EnvironmentFault: the disk failed, or the network or the Hub did and nothing is cached.
    """
    place = (cache or cache_folder() / "headers") / repository.lower().replace("/", "--")
    if is_commit(revision or ""):
        known = _cached(place, revision)
        if known is not None:
            return known
    noted = place / "revisions" / f"{quote(revision or 'main', safe='')}.json"
    known = _cached(place, _commit_in(noted))
    client = hub()
    try:
        commit = client.commit(repository, revision, progress.note, at_once=known is not None)
    except EnvironmentFault as error:
        if known is None:
            raise
        progress.note(
            f"the Hub cannot be reached, so {repository} is used at {known.commit[:12]}, the last "
            f"known commit of {revision or 'main'}: {error}"
        )
        return known
    if known is not None and known.commit == commit:
        return known
    try:
        found = _cached(place, commit) or _fetch(client, repository, commit, place, progress)
        write_json(noted, {"commit": commit})
    except OSError as error:
        raise EnvironmentFault(
            f"cannot keep the headers of {repository} in {place}: {error.strerror}; choose another "
            "cache with XDG_CACHE_HOME"
        ) from None
    return found


def _commit_in(noted: Path) -> str | None:
    """The commit that a revision had at the last request, if it is cached."""
    try:
        commit = own_json(noted)["commit"]
        return commit if is_commit(commit) else None
    except (OSError, InputError, ValueError, LookupError, TypeError, AttributeError):
        return None


def _cached(place: Path, commit: str | None) -> RemoteHeaders | None:
    """The cached files of a commit; None if they are not complete."""
    folder = place / (commit or "none")
    try:
        record = _Record.read(folder / _RECORD)
        if not all(map(is_inner_path, [*record.files, *record.shards])):
            return None
        sizes = {name: (folder / name).stat().st_size for name in record.files}
    except (OSError, InputError):
        return None
    if record.files != sizes:
        return None
    return RemoteHeaders(record.repository, folder.name, folder, record.shards)


def _fetch(
    hub: Hub, repository: str, commit: str, place: Path, progress: Progress
) -> RemoteHeaders:
    with resumable(place / f"{commit}.partial", {"commit": commit}) as work:
        known = _cached(place, commit)  # another run may have ended before the lock was ours
        if known is not None:
            return known
        folder = work / "whole"
        remote = look_up(hub, repository, commit, folder / _CHECKPOINT, progress)
        # Conversion reads no licences, for example.
        files = [file for file in remote.files if matches(file.name, READ_BY_CONVERSION)]
        reports = ThreadsProgress(progress)

        def bring(file: HubFile) -> None:
            path = folder / _place(file.name)
            if file.name.endswith(_WEIGHTS):
                content = _header(hub, remote.listing, file, path, reports)
            else:
                content = remote.contents.get(file.name) or read_small(
                    hub, remote.listing, file, folder / _CHECKPOINT
                )
            if not path.is_file() or path.read_bytes() != content:
                with atomic(path) as partial:
                    partial.write_bytes(content)
            reports.advance(1)

        progress.start(len(files), "files")
        run_all(bring, files, WORKERS, reports.stop)
        shards = {f.name: f.size_bytes for f in files if f.name.endswith(_WEIGHTS)}
        sizes = {_place(f.name): (folder / _place(f.name)).stat().st_size for f in files}
        name = remote.listing.repository
        _Record(repository=name, files=sizes, shards=shards).write(folder / _RECORD)
        shutil.rmtree(place / commit, ignore_errors=True)  # it was found not to be whole
        os.replace(folder, place / commit)
    return RemoteHeaders(remote.listing.repository, commit, place / commit, shards)


def _place(name: str) -> str:
    """Path of a file below the folder of its commit."""
    return f"headers/{name}.header" if name.endswith(_WEIGHTS) else f"{_CHECKPOINT}/{name}"


def _first_bytes(path: Path) -> bytes:
    """A file as far as its header goes."""
    with path.open("rb") as file:
        start = file.read(LENGTH_BYTES)
        return start + file.read(min(header_bytes(start), MAX_HEADER_BYTES))


def _header(
    hub: Hub, listing: Listing, file: HubFile, path: Path, reports: ThreadsProgress
) -> bytes:
    """The first bytes of a shard, to the end of its header.

    Those in `path` or in the Hub's cache are taken if they are correct.

    A header has no hash of its own, but it must account for every byte of its file, whose size the
    Hub records. A wrong one is fetched a second time.
    """

    def read(start: int, stop: int) -> bytes:
        return b"".join(hub.read(listing, file, start, reports.note_of_wait, stop))

    places = (path, cached_file(listing, file))
    here = [_first_bytes(place) for place in places if place is not None and place.is_file()]
    for known in (*here, None, None):
        content = read(0, FIRST_BYTES) if known is None else known
        # A length beyond the format or the file is not fetched; the parser refuses it.
        stop = LENGTH_BYTES + header_bytes(content)
        if len(content) < stop <= min(file.size_bytes, LENGTH_BYTES + MAX_HEADER_BYTES):
            content += read(len(content), stop)
        content = content[:stop]
        try:
            parse_header(
                content,
                file.size_bytes,
                f"{listing.repository}: {file.name}",
                f"it is broken at {listing.commit[:12]}, or a proxy or mirror changes it: choose "
                "another revision",
            )
            return content
        except InputError as error:
            wrong = error
    raise wrong
