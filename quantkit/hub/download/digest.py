"""Hashes of a file as its bytes come by, in the form in which the Hub records them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import HASH_CHUNK_BYTES
from quantkit.hub.reading import HubFile


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


def wrong_twice(file: HubFile, found: str) -> EnvironmentFault:
    """What is said of a file whose content is never what the Hub records."""
    return EnvironmentFault(
        f"{file.name} arrived wrong twice: the Hub records {file.identity} for its "
        f"{file.size_bytes} bytes, {found} came; a proxy or mirror may be changing it, or the "
        "repository is broken: run again later"
    )
