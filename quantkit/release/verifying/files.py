"""Access to the files of a release, in a folder or in a repository on the Hub."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.files import file_sha256
from quantkit.core.units import shown
from quantkit.formats import imatrix_file
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import GGUFHeader, read_header
from quantkit.hub.downloads import FileDigest, wrong_twice
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.models.remote import read_small

MOST_SMALL_BYTES = 64 << 20
"""Of a file that is read as a whole: JSON, SHA256SUMS, answers."""
SKIPPED_FOLDERS = frozenset({".git", ".cache", ".quantkit"})
"""What git, the Hub's client and quantkit keep beside what they bring."""
SKIPPED_FILES = frozenset({".gitattributes", ".gitignore", ".lock"})
HUB_READS = 8
"""Concurrent range requests."""
NOTE_EVERY_SECONDS = 10.0
"""Seconds between two notes about waiting for the Hub."""


class ReleaseFiles(ABC):
    """A release's files by name; safe to use from several threads.

    Attributes:
        where: what it is, for messages.
        sizes: name → bytes of every file, but for those that git and downloads keep.
        is_remote: each read is a request.
        reads_at_once: concurrent reads that pay.
    """

    where: str
    sizes: Mapping[str, int]
    is_remote: bool
    reads_at_once: int

    @abstractmethod
    def sha256(self, name: str, on_bytes: Callable[[int], None]) -> str:
        """SHA-256 of what is there, or of a large file as the Hub records it."""

    @abstractmethod
    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes [start, stop) of a file."""

    @abstractmethod
    def path(self, name: str) -> AbstractContextManager[Path]:
        """The file on this disk, while the context lasts."""

    def content(self, name: str) -> bytes:
        """A whole small file.

        Raises:
            InputError: it is not there, or larger than `MOST_SMALL_BYTES`.
        """
        self.check_size(name, MOST_SMALL_BYTES)
        return self.read(name, 0, self.sizes[name])

    def header(self, name: str) -> GGUFHeader:
        """The header of a GGUF file.

        Raises:
            InputError: it is none, or contradicts itself.
        """
        return read_header(partial(self.read, name), self.sizes[name], name)

    def check_size(self, name: str, limit: int) -> None:
        """Check that a file is here and has at most `limit` bytes.

        Raises:
            InputError: it is not, or has more.
        """
        size = self.sizes.get(name)
        if size is None:
            raise InputError(f"{self.where} has no {shown(name)}")
        if size > limit:
            raise InputError(f"{self.where}: {shown(name)} has {size} bytes, {limit} are the limit")


class FolderFiles(ReleaseFiles):
    """A downloaded release, or a build's own folder.

    Links may lead to files below the folder, below the build where it is a build's `release`, and
    to the blobs of the Hub's cache where it is a snapshot there. Folders at the top that are
    `skipped` are not looked into.

    Raises:
        InputError: a link leads elsewhere, or the folder cannot be read.
    """

    is_remote = False

    def __init__(
        self, folder: Path, skipped: frozenset[str] = frozenset(), workers: int = 1
    ) -> None:
        self.where, self._folder, self.reads_at_once = str(folder), folder, workers
        self._roots = _roots(folder.resolve())
        self.sizes: Mapping[str, int] = dict(self._walked(skipped))

    def _walked(self, skipped: frozenset[str]) -> Iterator[tuple[str, int]]:
        def refuse(error: OSError) -> None:
            raise InputError(f"cannot read {error.filename}: {error.strerror}") from None

        for place, folders, files in os.walk(self._folder, onerror=refuse):
            left_out = SKIPPED_FOLDERS | (skipped if Path(place) == self._folder else set())
            folders[:] = sorted(set(folders) - left_out)
            for name in sorted(files):
                path = Path(place, name)
                if name not in SKIPPED_FILES and self._is_file(path):
                    yield path.relative_to(self._folder).as_posix(), path.stat().st_size

    def _is_file(self, path: Path) -> bool:
        """Whether it is a regular file; pipes and dangling links are not."""
        if path.is_symlink() and path.exists():
            target = path.resolve()
            if not any(target.is_relative_to(root) for root in self._roots):
                raise InputError(
                    f"{path} is a link to {target}, out of the release; replace it by the file"
                )
        return path.is_file()

    def sha256(self, name: str, on_bytes: Callable[[int], None]) -> str:
        return file_sha256(self._folder / name, on_bytes)

    def read(self, name: str, start: int, stop: int) -> bytes:
        return FileBytes(self._folder / name).read(start, stop - start).tobytes()

    @contextmanager
    def path(self, name: str) -> Iterator[Path]:
        self.check_size(name, imatrix_file.MAX_BYTES)
        yield self._folder / name


def _roots(folder: Path) -> tuple[Path, ...]:
    """The folders that links of a release may lead into."""
    build = folder.parent
    if folder.name == "release" and (build / "receipts").is_dir():
        return folder, build
    if build.name == "snapshots":  # the Hub's cache: models--OWNER--NAME/snapshots/COMMIT
        return folder, build.parent / "blobs"
    return (folder,)


class HubFiles(ReleaseFiles):
    """A repository at one commit. Small files are verified against the Hub's own record of them."""

    is_remote = True
    reads_at_once = HUB_READS

    def __init__(
        self, hub: Hub, listing: Listing, on_wait: Callable[[str], None] = lambda _: None
    ) -> None:
        self._hub, self._listing, self._tell = hub, listing, on_wait
        self._lock, self._told_at = threading.Lock(), -math.inf
        self.where = f"{listing.repository}@{listing.commit[:12]}"
        self._files: dict[str, HubFile] = {
            f.name: f for f in listing.files if f.name.rpartition("/")[2] not in SKIPPED_FILES
        }
        self.sizes: Mapping[str, int] = {n: f.size_bytes for n, f in self._files.items()}
        self._contents: dict[str, bytes] = {}

    def sha256(self, name: str, on_bytes: Callable[[int], None]) -> str:
        file = self._files[name]
        found = file.sha256 or hashlib.sha256(self.content(name)).hexdigest()
        on_bytes(file.size_bytes)
        return found

    def content(self, name: str) -> bytes:
        self.check_size(name, MOST_SMALL_BYTES)
        if name not in self._contents:
            self._contents[name] = read_small(self._hub, self._listing, self._files[name], None)
        return self._contents[name]

    def read(self, name: str, start: int, stop: int) -> bytes:
        file = self._files[name]
        return b"".join(self._hub.read(self._listing, file, start, self._on_wait, stop))

    @contextmanager
    def path(self, name: str) -> Iterator[Path]:
        """Downloads to a temporary folder, and compares with the Hub's record.

        Raises:
            EnvironmentFault: it arrived wrong twice.
        """
        self.check_size(name, imatrix_file.MAX_BYTES)
        with tempfile.TemporaryDirectory(prefix="quantkit-verify-") as folder:
            path = Path(folder) / "file.gguf"
            for _attempt in range(2):
                digest = FileDigest(self._files[name])
                with path.open("wb") as out:
                    for piece in self._hub.read(self._listing, self._files[name], 0, self._on_wait):
                        digest.update(piece)
                        out.write(piece)
                if digest.is_right:
                    yield path
                    return
            raise wrong_twice(self._files[name], digest.identity)

    def _on_wait(self, sentence: str) -> None:
        """At most one note in a while: concurrent reads are throttled together."""
        with self._lock:
            if time.monotonic() - self._told_at >= NOTE_EVERY_SECONDS:
                self._told_at = time.monotonic()
                self._tell(sentence)
