"""What quantkit downloaded into a folder: one journal for each commit, in `.quantkit` there.

It tells our files from a person's, and spares a second hashing of files that nobody touched.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from quantkit.core.work_folders import Journal
from quantkit.hub.reading import HubFile

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
    """The record in `folder`; an empty one where nothing was downloaded."""
    repositories, kept = set(), dict[str, Kept]()
    for _, text in sorted(_journals(folder)):
        first, *lines = text.splitlines() or [""]
        if not first:  # left by a crash of the machine
            continue
        repositories.add(first.partition("@")[0])
        for line in lines:
            try:
                found = Kept(**json.loads(line))
            except (ValueError, TypeError):  # the line that was being written at a kill
                continue
            known = kept.get(found.name)
            if known is None or found.is_unchanged(folder) or not known.is_unchanged(folder):
                kept[found.name] = found
    return Record(frozenset(repositories), kept)


def _journals(folder: Path) -> Iterator[tuple[int, str]]:
    """Time and text of each; another run may be removing some, if it holds the lock."""
    for path in (folder / STATE).glob("*.journal"):
        with suppress(FileNotFoundError):
            yield path.stat().st_mtime_ns, path.read_text(encoding="utf-8", errors="replace")


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
