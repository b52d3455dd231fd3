"""What quantkit downloaded into a folder: one journal for each commit, in `.quantkit` there.

It tells our files from a person's, and spares a second hashing of files that nobody touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.journal import Journal

STATE = ".quantkit"
"""Folder for journals and unfinished files, inside the folder of the checkpoint."""


@dataclass(frozen=True)
class Kept:
    """A file that was downloaded, or found here, and verified.

    Attributes:
        identity: the hash that the Hub recorded for it; see `HubFile.identity`.
        sha256: of its content.
        modified_ns: time of last change when it was verified.
    """

    name: str
    identity: str
    sha256: str
    size_bytes: int
    modified_ns: int

    def is_unchanged(self, folder: Path) -> bool:
        """Whether the file in `folder` still has the size and time of then."""
        try:
            stat = (folder / self.name).stat()
        except OSError:
            return False
        return (stat.st_size, stat.st_mtime_ns) == (self.size_bytes, self.modified_ns)


@dataclass(frozen=True)
class Record:
    """All that the journals of a folder say.

    Attributes:
        repositories: whose files were downloaded into the folder.
        kept: by name; of several records the newest.
    """

    repositories: frozenset[str]
    kept: Mapping[str, Kept]


def read_record(folder: Path) -> Record:
    """The record in `folder`; an empty one where nothing was downloaded."""
    journals = sorted((folder / STATE).glob("*.journal"), key=lambda path: path.stat().st_mtime_ns)
    repositories, kept = set(), {}
    for path in journals:
        first, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        if not first:  # left by a crash of the machine
            continue
        repositories.add(first.partition("@")[0])
        for line in lines:
            try:
                found = Kept(**json.loads(line))
            except (ValueError, TypeError):  # the line that was being written at a kill
                continue
            kept[found.name] = found
    return Record(frozenset(repositories), kept)


def is_whole(folder: Path, names: Iterable[str]) -> bool:
    """Whether all `names` lie in `folder` as they were verified."""
    kept = read_record(folder).kept
    return all(name in kept and kept[name].is_unchanged(folder) for name in names)


class CommitJournal:
    """The journal of one commit, to add to; files that are in it are not added twice."""

    def __init__(self, folder: Path, repository: str, commit: str) -> None:
        self._folder, self._path = folder, folder / STATE / f"{commit}.journal"
        self._journal = Journal(self._path, f"{repository}@{commit}")

    def add(self, *files: Kept) -> None:
        """Record verified files; it is on the disk when this returns."""
        lines = [json.dumps(asdict(kept)) for kept in files]
        for line in lines:
            if line not in self._journal.lines:
                self._journal.append(line)

    def forget_others(self) -> None:
        """Remove the journals of earlier revisions: all their files are replaced or gone."""
        for path in (self._folder / STATE).glob("*.journal"):
            if path != self._path:
                path.unlink()
