"""What the loopback hub stores: commits as folders, branches, pull requests and large files.

No HTTP here. A commit is a folder with all its files, so that readers of one never see another;
files that did not change are hard links. Large files are stored under their SHA-256 in a folder of
each repository, as with the Hub's LFS, and stay there whether a commit names them or not.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

LFS = " filter=lfs diff=lfs merge=lfs -text\n"
_LFS_PATTERNS = ("*.7z", "*.bin", "*.model", "*.parquet", "*.safetensors", "*.zip", "*tfevents*")
ATTRIBUTES = "".join(pattern + LFS for pattern in _LFS_PATTERNS)
"""Some of the .gitattributes of a new repository: without *.gguf, whose files get a line each."""


class Refused(Exception):
    """The hub does not do what it was asked for.

    Attributes:
        status: of the answer.
        code: its X-Error-Code.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str = "",
        code: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, headers or {}


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one time.

    Attributes:
        large: names of the files stored with LFS; None: known by their suffix, in a folder of the
            test's own, which it may change.
        recorded: file name → the hash that the record claims of it.
    """

    id: str
    folder: Path
    large: frozenset[str] | None = None
    parent: Commit | None = None
    title: str = "initial commit"
    message: str = ""
    author: str = "system"
    recorded: Mapping[str, str] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Every file, sorted."""
        found = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in found)

    def is_large(self, name: str) -> bool:
        """Whether a file is stored with LFS."""
        return is_large(name) if self.large is None else name in self.large

    def record(self, name: str, claims: Mapping[str, int]) -> dict[str, Any]:
        """A file as the API lists it: with an LFS record where it is large.

        Args:
            claims: file name → its size in the record.
        """
        path = self.folder / name
        size, (sha256, git) = claims.get(name, path.stat().st_size), hashes(path)
        if not self.is_large(name):
            return {"rfilename": name, "size": size, "blobId": self.recorded.get(name, git)}
        sha256 = self.recorded.get(name, sha256)
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n"
        blob = hashlib.sha1(f"blob {len(pointer)}\0{pointer}".encode()).hexdigest()
        lfs = {"sha256": sha256, "size": size, "pointerSize": len(pointer)}
        return {"rfilename": name, "size": size, "blobId": blob, "lfs": lfs}


@dataclass
class Discussion:
    """A pull request; `head` is its last commit, `status` "open", "draft", "closed" or "merged"."""

    num: int
    title: str
    author: str
    head: Commit
    status: str = "open"


@dataclass(frozen=True)
class Change:
    """What a commit does to one path; without content and oid it goes, a folder's ends with `/`.

    Attributes:
        content: of a small file.
        oid: SHA-256 of a large one, which the store must hold.
    """

    path: str
    content: bytes | None = None
    oid: str | None = None


@dataclass
class Repository:
    """A repository; its own lock makes every change whole.

    Attributes:
        folder: for its commits and large files.
    """

    folder: Path
    branches: dict[str, Commit] = field(default_factory=dict)
    discussions: dict[int, Discussion] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def adopt(self, branch: str, commit: Commit) -> None:
        """Take a folder that exists already as a commit."""
        self.commits[commit.id] = commit
        if branch != commit.id:
            self.branches[branch] = commit

    def revision(self, name: str) -> Commit | None:
        """The commit of a branch, a pull request's ref or a commit id."""
        if name in self.branches:
            return self.branches[name]
        if (num := name.removeprefix("refs/pr/")) != name:
            found = self.discussions.get(int(num)) if num.isdecimal() else None
            return found.head if found else None
        return self.branches.get(name.removeprefix("refs/heads/")) or self.commits.get(name)

    def at(self, name: str) -> Commit:
        """The same.

        Raises:
            Refused: there is none.
        """
        commit = self.revision(name)
        if commit is None:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return commit

    def object(self, oid: str) -> Path | None:
        """A large file by its SHA-256, wherever it is known from."""
        stored = self.folder / "lfs" / oid
        if stored.is_file():
            return stored
        for commit in [commit for commit in list(self.commits.values()) if commit.large is None]:
            for name in filter(is_large, commit.names()):
                if hashes(commit.folder / name)[0] == oid:
                    return commit.folder / name
        return None

    def incoming(self, *parts: str) -> Path:
        """Where something that arrives lies until it is whole."""
        folder = self.folder / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ".".join(parts)

    def keep(self, arrived: Path, oid: str) -> None:
        """Put a large file into the store.

        Raises:
            Refused: its bytes have another SHA-256.
        """
        sha256 = hashes(arrived)[0]
        if sha256 != oid:
            arrived.unlink()
            raise Refused(400, f"The Content-SHA256 {sha256} is not the {oid} that was signed")
        (self.folder / "lfs").mkdir(parents=True, exist_ok=True)
        arrived.replace(self.folder / "lfs" / oid)

    def branch(self, name: str, start: str) -> None:
        """Make a branch.

        Raises:
            Refused: it exists, or `start` does not.
        """
        with self.lock:
            if name in self.branches:
                raise Refused(409, f"Reference already exists: refs/heads/{name}")
            if name.startswith("refs/"):
                raise Refused(400, f"Invalid reference for a branch: {name}")
            self.branches[name] = self.at(start)

    def commit(
        self,
        ref: str,
        changes: Sequence[Change],
        title: str,
        message: str = "",
        author: str = "system",
        parent: str | None = None,
        *,
        pull: bool = False,
        recorded: Mapping[str, str] | None = None,
    ) -> Commit:
        """Change the files of a branch or a pull request: all, or with an error none.

        Args:
            parent: the commit, or its first digits, that `ref` must be at.
            pull: open a pull request with them, from `parent` or `ref`.

        Raises:
            Refused: `ref` is somewhere else, or a change cannot be made.
        """
        with self.lock:
            head = self.revision(parent or ref) if pull else self.revision(ref)
            if parent is not None and not (head and head.id.startswith(parent)):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            folder = self.folder / "commits" / secrets.token_hex(20)
            if head is None:
                folder.mkdir(parents=True)
            else:  # a test may change a folder of its own
                copy = shutil.copyfile if head.large is None else os.link
                shutil.copytree(head.folder, folder, copy_function=copy)
            large = {name for name in head.names() if head.is_large(name)} if head else set()
            claims = dict(head.recorded) if head else {}
            try:
                for change in changes:
                    self._apply(change, folder, large)
                    claims.pop(change.path, None)
            except Refused:
                shutil.rmtree(folder)
                raise
            _attribute(folder, large & {change.path for change in changes if change.oid})
            claims |= recorded or {}
            commit = Commit(
                folder.name, folder, frozenset(large), head, title, message, author, claims
            )
            self.commits[commit.id] = commit
            if pull:
                num = len(self.discussions) + 1
                self.discussions[num] = Discussion(num, title, author, commit)
            elif ref.startswith("refs/pr/"):
                self.discussions[int(ref.removeprefix("refs/pr/"))].head = commit
            else:
                self.branches[ref] = commit
        return commit

    def _apply(self, change: Change, folder: Path, large: set[str]) -> None:
        name, path = change.path, folder / change.path
        if change.content is None and change.oid is None:
            if not (path.is_dir() if name.endswith("/") else path.is_file()):
                raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            large -= {n for n in large if n == name or n.startswith(name.rstrip("/") + "/")}
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)  # a hard link: the earlier commit keeps its own
        large.discard(name)
        if change.content is not None:
            path.write_bytes(change.content)
            return
        stored = self.object(change.oid or "")
        if stored is None:
            raise Refused(
                400,
                "Your push was rejected because an LFS pointer pointed to a file that does not "
                f"exist: {name} (oid: {change.oid})",
            )
        if stored.is_relative_to(self.folder):
            os.link(stored, path)
        else:  # a test's own file, which it may change
            shutil.copyfile(stored, path)
        large.add(name)


def _attribute(folder: Path, arrived: Iterable[str]) -> None:
    """Name large files in .gitattributes that no pattern there covers."""
    path = folder / ".gitattributes"
    before = after = path.read_text() if path.is_file() else ""
    for name in sorted(arrived):
        if not attributed(after, name):
            after += name.replace(" ", "[[:space:]]") + LFS
    if after != before:
        path.unlink(missing_ok=True)
        path.write_text(after)


def attributed(attributes: str, name: str) -> bool:
    """Whether a .gitattributes says that a file is stored with LFS."""
    patterns = [line.split()[0] for line in attributes.splitlines() if "filter=lfs" in line]
    return any(
        fnmatch(
            name if "/" in pattern else PurePosixPath(name).name,
            pattern.replace("[[:space:]]", " "),
        )
        for pattern in patterns
    )


def is_large(name: str) -> bool:
    """Whether a file of this name is stored with LFS, where nothing else is known of it."""
    return name.endswith((".safetensors", ".bin", ".model", ".gguf", ".parquet"))


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
