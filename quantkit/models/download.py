"""Downloads the files that a build needs into a folder. Resumes, and verifies every byte."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

from quantkit.core.disk import FULL, free_bytes, taken_bytes
from quantkit.core.errors import DiskFullError, EnvironmentFault, InputError
from quantkit.core.files import publish, refuse_link, refuse_links_in
from quantkit.core.progress import Progress
from quantkit.core.threads import run_all
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import build_folder
from quantkit.hub.downloads import (
    STATE,
    CommitJournal,
    FileDigest,
    Kept,
    RemoteFiles,
    cached_file,
    pieces,
    read_record,
    wrong_twice,
)
from quantkit.hub.reading import Hub, HubFile
from quantkit.models.local_copy import (
    SpaceNeeded,
    Survey,
    check_space,
    is_brought,
    is_lost,
    is_outdated,
    not_ours,
    partial_path,
    survey,
)

WORKERS = 8
"""Files at a time: one connection is often slower than the line."""
NOTE_EVERY_SECONDS = 10.0


@dataclass(frozen=True)
class Downloaded:
    """The files of a repository in a folder, by name, and how much of them this run fetched."""

    repository: str
    commit: str
    files: tuple[Kept, ...]
    fetched_bytes: int

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


def download(
    remote: RemoteFiles, hub: Hub, folder: Path, progress: Progress, workers: int = WORKERS
) -> Downloaded:
    """Download the files of a repository into `folder`, several at a time.

    A second run resumes: finished files stay, and unfinished ones continue where they ended. Files
    of an earlier revision that quantkit downloaded are removed or replaced if nobody changed them;
    a changed one is moved to `NAME.changed`. No other file is deleted. What huggingface_hub's
    cache has of the commit is not fetched: weights become links into it.

    Args:
        folder: created if it does not exist. A second run at the same time is refused.
        progress: counts bytes, with those that are here already.

    Raises:
        InputError: `folder` holds files that are not of this repository, or links in place of
            folders; it is being written by another run; or access was refused.
        EnvironmentFault: network, disk, or content that is wrong twice.
    """
    _refuse_links(remote, folder)
    _checked_survey(remote, folder)  # before the folder is created
    with build_folder(folder / STATE):
        found = _checked_survey(remote, folder)
        try:  # files of earlier revisions go
            for path in found.removed:
                path.unlink()
        except OSError as error:
            raise InputError(
                f"cannot write to {folder}: {error.strerror}; choose another folder with "
                f"{remote.chosen_with}"
            ) from None
        kept = sum(file.size_bytes for file in found.kept)
        progress.start(remote.size_bytes, "B", done=kept)
        job = _Job(remote, hub, folder, progress, found.kept)
        # Files that are here come first: one that is not ours ends the run early.
        run_all(job.bring, (*found.present, *found.missing), workers, job.stop)
        job.journal.forget_others()
        if job.linked_bytes:
            progress.note(
                f"{bytes_text(job.linked_bytes)} of weights were in the Hub's cache already: "
                f"{folder} has links to them, and needs the cache"
            )
        for path in sorted((folder / STATE).rglob("*"), reverse=True):  # contents before folders
            if path.is_dir():
                with suppress(OSError):  # not empty
                    path.rmdir()
    files = tuple(sorted(job.verified, key=lambda kept: kept.name))
    return Downloaded(remote.listing.repository, remote.listing.commit, files, job.fetched_bytes)


def _refuse_links(remote: RemoteFiles, folder: Path) -> None:
    """See that all that is written and deleted in `folder` is in it."""
    refuse_link(folder / STATE)
    refuse_links_in(folder / STATE)
    for name in {*(file.name for file in remote.files), *read_record(folder).kept}:
        for parent in Path(name).parents:
            if parent != Path("."):
                refuse_link(folder / parent)


def _checked_survey(remote: RemoteFiles, folder: Path) -> Survey:
    found = survey(remote, folder)
    check_space(SpaceNeeded(found.fetch_bytes), found.free_bytes, folder, remote.chosen_with)
    return found


class _StoppedError(Exception):
    """Another file failed, or the person stopped the run."""


class ThreadsProgress:
    """The progress of several threads; after `stop` it reports nothing."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._noted_at = 0.0
        self.lock = threading.Lock()
        self.stop = threading.Event()

    def advance(self, amount: int) -> None:
        with self.lock:
            if not self.stop.is_set():
                self._progress.advance(amount)

    def note(self, sentence: str) -> None:
        with self.lock:
            if not self.stop.is_set():
                self._progress.note(sentence)

    def note_of_wait(self, sentence: str) -> None:
        """At most one sentence in ten seconds: all files lose the network at the same moment."""
        with self.lock:
            now = time.monotonic()
            is_due = now - self._noted_at >= NOTE_EVERY_SECONDS
            self._noted_at = now if is_due else self._noted_at
        if is_due:
            self.note(sentence)


class _Job:
    """One download's shared state; its methods are called from several threads."""

    def __init__(
        self, remote: RemoteFiles, hub: Hub, folder: Path, progress: Progress, kept: Sequence[Kept]
    ) -> None:
        self._remote, self._hub, self._folder = remote, hub, folder
        self._progress = ThreadsProgress(progress)
        self._recorded = read_record(folder).kept
        self.journal = CommitJournal(folder, remote.listing.repository, remote.listing.commit)
        self.journal.add(*kept)  # for an earlier commit, perhaps
        self.stop = self._progress.stop
        self.verified = [*kept]
        self.fetched_bytes = 0
        self.linked_bytes = 0

    def bring(self, file: HubFile) -> None:
        """Make sure that `file` is in the folder, complete and with the right hash."""
        path, known = self._folder / file.name, self._recorded.get(file.name)
        doing = "read"
        try:
            if os.path.lexists(path) and not is_outdated(known, file, self._folder):
                if self._is_right(path, file):
                    return
                if not is_brought(known):
                    raise not_ours(path, self._remote)
                self._set_aside(path, "was changed here")
            doing = "write"
            if self._take_cached(file):
                return
            if self._fetch(file) is not None:
                self._progress.note(f"{file.name} arrived with a wrong hash and is fetched again")
                found = self._fetch(file)
                if found is not None:
                    raise wrong_twice(file, found)
        except OSError as error:
            if error.errno in FULL:
                raise self._disk_full(file, error) from None
            raise _disk_fault(doing, path, error) from None

    def _disk_full(self, file: HubFile, error: OSError) -> DiskFullError:
        left = max(file.size_bytes - taken_bytes(partial_path(self._folder, file)), 0)
        free = bytes_text(free_bytes(self._folder))
        return DiskFullError(
            f"download: cannot write {self._folder / file.name}: {error.strerror}; "
            f"{bytes_text(left)} of this file are still needed, {free} free on its disk: make "
            "room, then run again: finished files are kept",
            stage="download",
            needed_bytes=left,
        )

    def _set_aside(self, path: Path, why: str) -> None:
        endings = chain([".changed"], (f".changed-{number}" for number in count(2)))
        free = (path.with_name(path.name + ending) for ending in endings)
        aside = next(place for place in free if not os.path.lexists(place))
        path.replace(aside)
        self._progress.note(f"{path.name} {why}: kept as {aside.name}, and fetched again")

    def _is_right(self, path: Path, file: HubFile) -> bool:
        if not path.is_file() or path.stat().st_size != file.size_bytes:
            return False
        digest = FileDigest(file)
        for piece in pieces(path):
            digest.update(piece)
            self._advance(len(piece))
        if digest.is_right:
            self._keep(file, digest, path, brought=False)
        else:
            self._advance(-digest.size_bytes)
        return digest.is_right

    def _take_cached(self, file: HubFile) -> bool:
        """Whether the Hub's cache has the file, with the right hash: it is not fetched then.

        Weights stay there, and get a link; small files, which a person may edit, are copied.
        """
        cached = cached_file(self._remote.listing, file)
        if cached is None:
            return False
        digest = FileDigest(file)
        for piece in pieces(cached):
            digest.update(piece)
            self._advance(len(piece))
        if not digest.is_right:
            self._advance(-digest.size_bytes)
            return False
        partial = partial_path(self._folder, file)
        ready = partial.with_suffix(".ready.partial")  # never appended to, as `partial` is
        ready.parent.mkdir(parents=True, exist_ok=True)
        ready.unlink(missing_ok=True)
        if file.name.endswith(".safetensors"):
            ready.symlink_to(cached)
            with self._progress.lock:
                self.linked_bytes += file.size_bytes
        else:
            shutil.copyfile(cached, ready)
        self._keep(file, digest, ready, brought=True)
        self._publish(ready, self._folder / file.name)
        partial.unlink(missing_ok=True)
        return True

    def _fetch(self, file: HubFile) -> str | None:
        """Fetch the rest of `file`; None if its hash is right, else the hash of what arrived."""
        partial, path = partial_path(self._folder, file), self._folder / file.name
        digest = FileDigest(file)
        partial.parent.mkdir(parents=True, exist_ok=True)
        for piece in pieces(partial):
            digest.update(piece)
            self._advance(len(piece))
        start, content = digest.size_bytes, self._remote.contents.get(file.name)
        source = [content[start:]] if content is not None else None
        note = self._progress.note_of_wait
        with partial.open("ab") as output:
            for piece in source or self._hub.read(self._remote.listing, file, start, note):
                output.write(piece)
                digest.update(piece)
                self._advance(len(piece), fetched=True)
            output.flush()
            size = os.fstat(output.fileno()).st_size
        if digest.is_right and size == file.size_bytes:
            # Recorded first: after a kill in between, the file is still known as ours.
            self._keep(file, digest, partial, brought=True)
            self._publish(partial, path)
            return None
        partial.unlink()
        self._advance(-digest.size_bytes)
        return f"a file of {size} bytes" if digest.is_right else digest.identity

    def _publish(self, partial: Path, path: Path) -> None:
        """Move a finished file to its place. A file that a person put there meanwhile is kept."""
        known = self._recorded.get(path.relative_to(self._folder).as_posix())
        ours = is_brought(known) and (
            is_lost(path) or (known is not None and known.is_unchanged(self._folder))
        )
        if os.path.lexists(path) and not ours:
            self._set_aside(path, "appeared here meanwhile")
        publish(partial, path)

    def _keep(self, file: HubFile, digest: FileDigest, place: Path, *, brought: bool) -> None:
        size, modified = (stat := place.stat()).st_size, stat.st_mtime_ns  # as after renaming
        kept = Kept(file.name, file.identity, digest.sha256, size, modified, brought)
        with self._progress.lock:
            self.journal.add(kept)
            self.verified.append(kept)

    def _advance(self, amount: int, *, fetched: bool = False) -> None:
        if self.stop.is_set():
            raise _StoppedError
        with self._progress.lock:
            self.fetched_bytes += amount if fetched else 0
        self._progress.advance(amount)


def _disk_fault(doing: str, path: Path, error: OSError) -> EnvironmentFault:
    match error.errno:
        case errno.EACCES | errno.EPERM | errno.EROFS:
            advice = "check its permissions"
        case errno.EISDIR | errno.ENOTDIR | errno.EEXIST:
            where = error.filename or path
            advice = f"{where} exists and is of another kind: move it away"
        case _:
            advice = "check the disk"
    return EnvironmentFault(
        f"cannot {doing} {path}: {error.strerror}; {advice}, then run again: finished files are "
        "kept"
    )
