"""Files to download, their hashes, and one journal for each commit in `.quantkit` of the folder.

A journal tells our files from a person's, and spares a second hashing of unchanged files.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import HASH_CHUNK_BYTES, is_inner_path
from quantkit.core.parsing import MOST_JSON_BYTES, check_size
from quantkit.core.work_folders import Journal
from quantkit.hub.reading import HubFile, Listing

STATE = ".quantkit"
"""Folder for journals and unfinished files, inside the folder of the checkpoint."""


@dataclass(frozen=True)
class Kept:
    """A file that was downloaded, or found here, and verified.

    Attributes:
        identity: the hash that the Hub recorded for it; see `HubFile.identity`.
        sha256: of its content.
        modified_ns: time of last change when it was verified.
        brought: it was downloaded, so that it may be replaced or removed where it is unchanged;
            a file that was found here stays a person's.
    """

    name: str
    identity: str
    sha256: str
    size_bytes: int
    modified_ns: int
    brought: bool

    def is_of(self, file: HubFile) -> bool:
        """Whether this is the content that the Hub records for `file`."""
        return (self.identity, self.size_bytes) == (file.identity, file.size_bytes)

    def is_unchanged(self, folder: Path) -> bool:
        """Whether the file in `folder` still has the size and time of then."""
        try:
            stat = (folder / self.name).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.modified_ns)


_KEPT = TypeAdapter(Kept)


@dataclass(frozen=True)
class Record:
    """All that the journals of a folder say.

    Attributes:
        repositories: whose files were downloaded into the folder.
        kept: by name; of several records the one that the file still agrees with, else the newest.
    """

    repositories: frozenset[str]
    kept: Mapping[str, Kept]


def read_record(folder: Path) -> Record:
    """The record in `folder`; an empty one where nothing was downloaded.

    Raises:
        InputError: a journal is larger than any that a download writes.
    """
    texts, repositories, kept = [], set(), dict[str, Kept]()
    for path in (folder / STATE).glob("*.journal"):
        with suppress(FileNotFoundError):  # another run may remove some, if it holds the lock
            check_size(path, MOST_JSON_BYTES)
            written = path.read_text(encoding="utf-8", errors="replace")
            texts.append((path.stat().st_mtime_ns, written))
    for _, text in sorted(texts):
        first, *lines = text.splitlines() or [""]
        if not first:  # left by a crash of the machine
            continue
        repositories.add(first.partition("@")[0])
        for line in lines:
            try:
                found = _KEPT.validate_json(line, strict=True)
            except ValueError:  # the line that was being written at a kill
                continue
            hidden = any(part.startswith(".") for part in found.name.split("/"))
            if hidden or not is_inner_path(found.name):
                continue  # a name that no download has
            known = kept.get(found.name)
            if known is None or found.is_unchanged(folder) or not known.is_unchanged(folder):
                kept[found.name] = found
    return Record(frozenset(repositories), kept)


def is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Whether all `names` lie in `folder` as they were verified."""
    kept = read_record(folder).kept
    return all(name in kept and kept[name].is_unchanged(folder) for name in names)


class CommitJournal(Journal):
    """The journal of one commit, to add to; files that are in it are not added twice."""

    def __init__(self, folder: Path, repository: str, commit: str) -> None:
        super().__init__(folder / STATE / f"{commit}.journal", f"{repository}@{commit}")

    def add(self, *files: Kept) -> None:
        """Record verified files; it is on the disk when this returns."""
        for line in (json.dumps(asdict(kept)) for kept in files):
            if line not in self.lines:
                self.append(line)

    def forget_others(self) -> None:
        """Remove the journals of earlier revisions: all their files are replaced or gone."""
        for path in self.path.parent.glob("*.journal"):
            if path != self.path:
                path.unlink()


class FileDigest:
    """SHA-256 of what came of `file`, and git's hash where the Hub records that."""

    def __init__(self, file: HubFile) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        header = f"blob {file.size_bytes}\0".encode()
        self._git = None if file.sha256 else hashlib.sha1(header, usedforsecurity=False)
        self.size_bytes = 0

    def update(self, piece: bytes) -> None:
        self.size_bytes += len(piece)
        self._sha256.update(piece)
        if self._git is not None:
            self._git.update(piece)

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    @property
    def identity(self) -> str:
        """What came, in the words of `HubFile.identity`."""
        return f"sha256:{self.sha256}" if self._git is None else f"git:{self._git.hexdigest()}"

    @property
    def is_right(self) -> bool:
        """Whether what came is the whole file that the Hub records."""
        return self.size_bytes == self._file.size_bytes and self.identity == self._file.identity


def pieces(path: Path) -> Iterator[bytes]:
    """The content of `path` in pieces; nothing where there is no such file."""
    if path.exists():
        with path.open("rb") as file:
            while piece := file.read(HASH_CHUNK_BYTES):
                yield piece


def cached_file(listing: Listing, file: HubFile) -> Path | None:
    """The file in huggingface_hub's own cache, of the listing's commit and the right size.

    Its content is not verified. The cache is the client's: HF_HUB_CACHE, or `hub` in HF_HOME.
    """
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        listing.repository, file.name, revision=listing.commit, repo_type=listing.kind
    )
    if not isinstance(found, str) or not os.access(found, os.R_OK):
        return None
    path = Path(found).absolute()
    return path if path.is_file() and path.stat().st_size == file.size_bytes else None


def cached_folder(repository: str, revision: str | None) -> Path | None:
    """The files of a model in huggingface_hub's own cache, if its config.json is among them."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # a name that no repository has
        found = try_to_load_from_cache(repository, "config.json", revision=revision)
        if isinstance(found, str):
            return Path(found).parent
    return None


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids to ask the Hub."""
    from huggingface_hub import is_offline_mode

    return is_offline_mode()


def wrong_twice(file: HubFile, found: str) -> EnvironmentFault:
    """What is said of a file whose content is never what the Hub records."""
    return EnvironmentFault(
        f"{file.name} arrived wrong twice: the Hub records {file.identity} for its "
        f"{file.size_bytes} bytes, {found} came; a proxy or mirror may be changing it, or the "
        "repository is broken: run again later"
    )


@dataclass(frozen=True, kw_only=True)
class RemoteFiles:
    """What is wanted of a repository, and what a folder must not hold beside it.

    Attributes:
        files: what is wanted, in the order in which it is fetched.
        contents: files that were read already, verified.
        foreign: patterns of names that would be read as part of it where they lie in its folder,
            so that none may be there that it does not have.
        removable: patterns of names that a download writes, so that a file of an earlier revision
            may be removed: a journal may be anybody's. None: any name in the folder.
        chosen_with: the option or variable that chooses the folder, for messages.
    """

    listing: Listing
    files: tuple[HubFile, ...]
    contents: Mapping[str, bytes] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    removable: tuple[str, ...] | None = None
    chosen_with: str = "--out"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)
