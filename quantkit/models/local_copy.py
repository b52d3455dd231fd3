"""Which files of a checkpoint a folder already has, and which of its files are not ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.hub.download.record import STATE, Kept, Record, read_record
from quantkit.hub.download.remote_files import RemoteFiles
from quantkit.hub.reading import HubFile
from quantkit.models.disk_space import free_bytes


@dataclass(frozen=True)
class Survey:
    """A folder compared with the files of a repository.

    Attributes:
        kept: verified before and unchanged since.
        present: here, but not hashed yet.
        missing: to be fetched, completely or from the end of a partial file.
        obsolete: ours, of an earlier revision and unchanged: to be removed.
        leftovers: unfinished files of earlier revisions: to be removed.
        fetch_bytes: to be fetched, if all of `present` has the right hash.
        free_bytes: free on the disk, plus the size of `obsolete` and `leftovers`.
    """

    kept: tuple[Kept, ...]
    present: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    obsolete: tuple[Kept, ...]
    leftovers: tuple[Path, ...]
    fetch_bytes: int
    free_bytes: int


def survey(remote: RemoteFiles, folder: Path) -> Survey:
    """Compare `folder` with `remote` by names and sizes; nothing is changed or hashed.

    Raises:
        InputError: `folder` holds files of another origin.
    """
    listing, record = remote.listing, read_record(folder)
    others = sorted(record.repositories - {listing.repository})
    if others:
        raise InputError(
            f"{folder} holds a download of {others[0]}; choose another folder with "
            f"{remote.chosen_with}, or delete that one"
        )
    listed = {file.name for file in listing.files}
    obsolete = tuple(
        kept
        for name, kept in sorted(record.kept.items())
        if name not in listed and kept.brought and kept.is_unchanged(folder)
    )
    ours = {kept.name for kept in obsolete}
    foreign = sorted(set(_matching(folder, remote.foreign)) - listed - ours)
    if foreign:
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise InputError(
            f"{folder} holds {foreign[0]}{more}, not of {listing.repository} at "
            f"{listing.commit[:12]}, which would be read as part of the checkpoint: move them "
            f"away, or choose another folder with {remote.chosen_with}"
        )
    kept, present, missing = _by_state(remote, record, folder)
    fetch = sum(file.size_bytes - _partial_bytes(folder, file) for file in missing)
    wanted = {partial_path(folder, file) for file in remote.files}
    leftovers = tuple(p for p in (folder / STATE).rglob("*.partial") if p not in wanted)
    given_back = sum(file.size_bytes for file in obsolete)
    given_back += sum(_size(path) for path in leftovers)
    free = free_bytes(folder) + given_back
    return Survey(kept, present, missing, obsolete, leftovers, fetch, free)


def _matching(folder: Path, patterns: tuple[str, ...]) -> Iterator[str]:
    """Names of the files in `folder` that match one of `patterns`."""
    for place in (folder, folder / "additional_chat_templates"):
        for path in place.iterdir() if place.is_dir() else ():
            name = path.relative_to(folder).as_posix()
            near = (p for p in patterns if p.count("/") == name.count("/"))
            if any(fnmatchcase(name, pattern) for pattern in near):
                yield name


def _by_state(
    remote: RemoteFiles, record: Record, folder: Path
) -> tuple[tuple[Kept, ...], tuple[HubFile, ...], tuple[HubFile, ...]]:
    kept: list[Kept] = []
    present: list[HubFile] = []
    missing: list[HubFile] = []
    for file in remote.files:
        known, path = record.kept.get(file.name), folder / file.name
        if not os.path.lexists(path):
            missing.append(file)
        elif known is not None and known.is_of(file) and known.is_unchanged(folder):
            kept.append(known)
        elif is_outdated(known, file, folder):
            missing.append(file)
        elif is_brought(known) or _size(path) == file.size_bytes:
            present.append(file)
        else:
            raise not_ours(path, remote)
    return tuple(kept), tuple(present), tuple(missing)


def is_brought(known: Kept | None) -> bool:
    """Whether quantkit downloaded the file. A changed one is set aside and never removed."""
    return known is not None and known.brought


def is_outdated(known: Kept | None, file: HubFile, folder: Path) -> bool:
    """Whether the file here is ours, unchanged, and of an earlier revision."""
    if known is None or not known.brought or known.identity == file.identity:
        return False
    return known.is_unchanged(folder)


def not_ours(path: Path, remote: RemoteFiles) -> InputError:
    """The error for a file of another origin in the place of a repository's file."""
    listing = remote.listing
    return InputError(
        f"{path} is not the file that {listing.repository} has at {listing.commit[:12]}, and "
        "quantkit did not download it: move it away, or choose another folder with "
        f"{remote.chosen_with}"
    )


def partial_path(folder: Path, file: HubFile) -> Path:
    """Named after the content, so that bytes of two revisions never meet in one file."""
    content = file.identity.partition(":")[2][:16]
    return folder / STATE / f"{file.name}.{content}.partial"


def _partial_bytes(folder: Path, file: HubFile) -> int:
    return min(_size(partial_path(folder, file)), file.size_bytes)


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist, because another run may have removed it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0
