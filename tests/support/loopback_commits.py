"""One commit of the loopback hub: its files, and how the Hub records each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

LFS = " filter=lfs diff=lfs merge=lfs -text\n"
_PATTERNS = """
    *.7z *.arrow *.bin *.bz2 *.ckpt *.ftz *.gz *.h5 *.joblib *.lfs.* *.mlmodel *.model *.msgpack
    *.npy *.npz *.onnx *.ot *.parquet *.pb *.pickle *.pkl *.pt *.pth *.rar *.safetensors
    saved_model/**/* *.tar.* *.tar *.tflite *.tgz *.wasm *.xz *.zip *.zst *tfevents*
"""
ATTRIBUTES = "".join(pattern + LFS for pattern in _PATTERNS.split())
"""The .gitattributes of a new repository: without *.gguf, whose files get a line each."""


@dataclass(frozen=True)
class Recorded:
    """What the record says of one file instead of the truth.

    Attributes:
        hash: SHA-256 of a large file, git object id of another.
    """

    size: int | None = None
    hash: str | None = None


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time.

    Attributes:
        large: names of the files stored with LFS; None: known by their suffix.
        recorded: file name → what the record claims of it.
    """

    id: str
    folder: Path
    large: frozenset[str] | None = None
    parent: Commit | None = None
    title: str = "initial commit"
    message: str = ""
    author: str = "system"
    date: datetime = field(default_factory=lambda: datetime.now(UTC))
    recorded: Mapping[str, Recorded] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every file, sorted."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def is_large(self, name: str) -> bool:
        """Whether a file is stored with LFS."""
        return is_large(name) if self.large is None else name in self.large

    def record(self, name: str, claims: Mapping[str, int] | None = None) -> dict[str, object]:
        """A file as the record of a repository lists it."""
        claim = self.recorded.get(name, Recorded())
        sizes = {**(claims or {}), **({} if claim.size is None else {name: claim.size})}
        return record(self.folder, name, sizes, self.is_large(name), claim.hash)

    def history(self) -> Iterator[Commit]:
        """This commit and those before it, the last first."""
        commit: Commit | None = self
        while commit is not None:
            yield commit
            commit = commit.parent


_HASHES: dict[tuple[int, ...], tuple[str, str]] = {}


def hashes(path: Path) -> tuple[str, str]:
    """SHA-256, and the git object id, of a file; quick the second time, by any of its names."""
    stat = path.stat()
    key = (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    if key not in _HASHES:
        sha256, git = hashlib.sha256(), hashlib.sha1(f"blob {stat.st_size}\0".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                sha256.update(piece)
                git.update(piece)
        _HASHES[key] = sha256.hexdigest(), git.hexdigest()
    return _HASHES[key]


def is_large(name: str) -> bool:
    """Whether a file of this name is stored with LFS, where nothing else is known of it."""
    return name.endswith((".safetensors", ".bin", ".model", ".gguf", ".parquet"))


def record(
    folder: Path,
    name: str,
    claims: Mapping[str, int],
    large: bool | None = None,
    claimed_hash: str | None = None,
) -> dict[str, object]:
    """A file as the API lists it: with an LFS record where it is large."""
    path = folder / name
    size = claims.get(name, path.stat().st_size)
    sha256, git = hashes(path)
    if not (is_large(name) if large is None else large):
        return {"rfilename": name, "size": size, "blobId": claimed_hash or git}
    sha256 = claimed_hash or sha256
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
    blob = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
    lfs = {"sha256": sha256, "size": size, "pointerSize": len(pointer)}
    return {"rfilename": name, "size": size, "blobId": blob, "lfs": lfs}


def attributed(attributes: str, name: str) -> bool:
    """Whether a .gitattributes says that a file is stored with LFS."""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    for pattern in (pattern.replace("[[:space:]]", " ") for pattern in patterns):
        subject = name if "/" in pattern else PurePosixPath(name).name
        if fnmatch(subject, pattern.replace("/**/", "/*")):
            return True
    return False
