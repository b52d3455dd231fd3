"""What the loopback hub stores: commits as folders, branches, pull requests and large files.

No HTTP here. A commit is a folder with all its files, so that readers of one never see another;
files that did not change are hard links. Large files are stored under their SHA-256 in a folder of
each repository, as with the Hub's LFS, and stay there whether a commit names them or not.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath


class Refused(Exception):
    """The hub does not do what it was asked for.

    Attributes:
        status: of the answer.
        code: its X-Error-Code.
    """

    def __init__(self, status: int, message: str, code: str = "") -> None:
        super().__init__(message)
        self.status, self.code = status, code


@dataclass
class Discussion:
    """A pull request.

    Attributes:
        head: its last commit.
        status: "open", "draft", "closed" or "merged".
    """

    num: int
    title: str
    author: str
    head: Commit
    status: str = "open"
    date: datetime = field(default_factory=lambda: datetime.now(UTC))


@dataclass(frozen=True)
class Change:
    """What a commit does to one path: exactly one of the four.

    Attributes:
        content: of a small file.
        oid: SHA-256 of a large one, which the store must hold.
        deleted, deleted_folder: the path goes.
    """

    path: str
    content: bytes | None = None
    oid: str | None = None
    deleted: bool = False
    deleted_folder: bool = False


@dataclass
class Repository:
    """A repository that can be written to; its own lock makes every change whole.

    Attributes:
        name: OWNER/NAME, or datasets/OWNER/NAME.
        folder: for its commits and large files.
    """

    name: str
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

    def object(self, oid: str) -> Path | None:
        """A large file by its SHA-256, wherever it is known from."""
        stored = self.folder / "lfs" / oid
        if stored.is_file():
            return stored
        adopted = [commit for commit in list(self.commits.values()) if commit.large is None]
        for commit in adopted:
            for name in filter(is_large, commit.names()):
                if hashes(commit.folder / name)[0] == oid:
                    return commit.folder / name
        return None

    def incoming(self, *parts: str) -> Path:
        """Where something that arrives lies until it is whole."""
        folder = self.folder / "incoming"
        folder.mkdir(parents=True, exist_ok=True)
        return folder / ".".join(parts)

    def add(self, content: bytes) -> str:
        """Put a large file into the store; its SHA-256."""
        oid = hashlib.sha256(content).hexdigest()
        arrived = self.incoming(oid)
        arrived.write_bytes(content)
        self.keep(arrived, oid)
        return oid

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
            commit = self.revision(start)
            if commit is None:
                raise Refused(404, f"Invalid rev id: {start}", "RevisionNotFound")
            self.branches[name] = commit

    def commit(
        self,
        ref: str,
        changes: Iterable[Change],
        title: str,
        message: str = "",
        author: str = "system",
        parent: str | None = None,
        recorded: Mapping[str, Recorded] | None = None,
    ) -> Commit:
        """Change the files of a branch or a pull request: all, or with an error none.

        Args:
            parent: the commit, or its first digits, that `ref` must be at.

        Raises:
            Refused: `ref` is somewhere else, or a change cannot be made.
        """
        with self.lock:
            head = self.revision(ref)
            if parent is not None and not (head and head.id.startswith(parent)):
                raise Refused(412, "A commit has happened since. Please refresh and try again.")
            commit = self._made(head, changes, title, message, author, ref, recorded or {})
            if ref.startswith("refs/pr/"):
                self.discussions[int(ref.removeprefix("refs/pr/"))].head = commit
            else:
                self.branches[ref] = commit
        return commit

    def open(self, title: str, author: str, base: str) -> Discussion:
        """Open a pull request from `base`.

        Raises:
            Refused: there is no such base.
        """
        with self.lock:
            commit = self.revision(base)
            if commit is None:
                raise Refused(404, f"Invalid rev id: {base}", "RevisionNotFound")
            num = len(self.discussions) + 1
            self.discussions[num] = Discussion(num, title, author, commit)
            return self.discussions[num]

    def _made(
        self,
        parent: Commit | None,
        changes: Iterable[Change],
        title: str,
        message: str,
        author: str,
        ref: str,
        recorded: Mapping[str, Recorded],
    ) -> Commit:
        """A new commit after `parent`, under its own name once it is whole."""
        (self.folder / "commits").mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=self.folder / "commits", prefix="new-"))
        try:
            large = set() if parent is None else _continued(parent, folder)
            done = list(changes)
            self._apply(done, folder, large)
            claims = dict(parent.recorded) if parent else {}
            claims = {n: c for n, c in claims.items() if n not in {d.path for d in done}}
            made = Commit("", folder, frozenset(large), parent, title, message, author)
            blobs = [f"{made.record(name)['blobId']} {name}" for name in made.names()]
            words = "\n".join([parent.id if parent else "", ref, title, message, author, *blobs])
            made_id = hashlib.sha1(f"commit {self.name}\n{words}".encode()).hexdigest()
            final = self.folder / "commits" / made_id
            if not final.exists():  # two pull requests may say the same
                folder.rename(final)
            self.commits[made_id] = replace(
                made, id=made_id, folder=final, recorded={**claims, **recorded}
            )
            return self.commits[made_id]
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _apply(self, changes: Iterable[Change], folder: Path, large: set[str]) -> None:
        arrived = set()
        for change in changes:
            path = folder / change.path
            parts = PurePosixPath(change.path).parts
            if not parts or change.path.startswith("/") or {"..", ".git"} & set(parts):
                raise Refused(400, f"Invalid path: {change.path}")
            if change.deleted_folder and path.is_dir():
                shutil.rmtree(path)
                large -= {n for n in large if n.startswith(change.path.rstrip("/") + "/")}
                continue
            if change.deleted or change.deleted_folder:
                if not path.is_file():
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
                path.unlink()
                large.discard(change.path)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)  # a hard link: the earlier commit keeps its own
            large.discard(change.path)
            if change.content is not None:
                path.write_bytes(change.content)
                continue
            stored = self.object(change.oid or "")
            if stored is None:
                raise Refused(
                    400,
                    "Your push was rejected because an LFS pointer pointed to a file that does "
                    f"not exist: {change.path} (oid: {change.oid})",
                )
            if stored.is_relative_to(self.folder):
                os.link(stored, path)
            else:  # a test's own file, which it may change
                shutil.copyfile(stored, path)
            arrived.add(change.path)
            large.add(change.path)
        _attribute(folder, sorted(arrived & large))


def _attribute(folder: Path, large: Iterable[str]) -> None:
    """Name large files in .gitattributes that no pattern there covers."""
    path = folder / ".gitattributes"
    before = path.read_text() if path.is_file() else ""
    after = before
    for name in large:
        if not attributed(after, name):
            after += name.replace(" ", "[[:space:]]") + LFS
    if after != before:
        path.unlink(missing_ok=True)
        path.write_text(after)


def _continued(parent: Commit, folder: Path) -> set[str]:
    """Fill `folder` with the files of `parent`; names of the large ones."""
    names = parent.names()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if parent.large is None:  # a test's own folder, which it may change
            shutil.copyfile(parent.folder / name, folder / name)
        else:
            os.link(parent.folder / name, folder / name)
    return {name for name in names if parent.is_large(name)}


@dataclass
class Store:
    """All repositories that can be written to, below `folder`."""

    folder: Path
    repositories: dict[str, Repository] = field(default_factory=dict)

    def create(self, name: str) -> Repository:
        """A new repository with its first commit."""
        made = self.repositories[name] = Repository(name, self.folder / name)
        made.commit("main", [Change(".gitattributes", ATTRIBUTES.encode())], "initial commit")
        return made


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
