"""What a folder already has of a checkpoint, and which files there are not ours to touch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from quantkit.downloads.record import STATE, Kept, Record, read_record
from quantkit.downloads.remote import RemoteCheckpoint
from quantkit.downloads.space import free_bytes
from quantkit.errors import InputError
from quantkit.hub import HubFile, Listing


@dataclass(frozen=True)
class Survey:
    """A folder compared with a checkpoint on the Hub.

    Attributes:
        kept: verified before and unchanged since.
        present: here, but to be hashed first.
        missing: to be fetched, wholly or from where a partial file ends.
        obsolete: of an earlier revision, ours and unchanged: to be removed.
        fetch_bytes: still to come, if everything in `present` is found right.
        free_bytes: on the disk, together with what `obsolete` gives back.
    """

    kept: tuple[Kept, ...]
    present: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    obsolete: tuple[Kept, ...]
    fetch_bytes: int
    free_bytes: int


def survey(remote: RemoteCheckpoint, folder: Path) -> Survey:
    """Compare `folder` with `remote` by names and sizes; nothing is changed or hashed.

    Raises:
        InputError: files here are not of this checkpoint, so `folder` is not ours to fill.
    """
    listing, record = remote.listing, read_record(folder)
    others = sorted(record.repositories - {listing.repository})
    if others:
        raise InputError(
            f"{folder} holds a download of {others[0]}; choose another folder with --out, or "
            "delete that one"
        )
    listed = {file.name for file in listing.files}
    obsolete = tuple(
        kept
        for name, kept in sorted(record.kept.items())
        if name not in listed and kept.is_unchanged(folder)
    )
    ours = {kept.name for kept in obsolete}
    foreign = sorted(p.name for p in folder.glob("*.safetensors") if p.name not in listed | ours)
    if foreign:
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise InputError(
            f"{folder} holds {foreign[0]}{more}, not of {listing.repository} at "
            f"{listing.commit[:12]}, which would be read as part of the checkpoint: move them "
            "away, or choose another folder with --out"
        )
    kept, present, missing = _by_state(remote, record, folder)
    fetch = sum(file.size_bytes - _partial_bytes(folder, file) for file in missing)
    given_back = sum(file.size_bytes for file in obsolete)
    return Survey(kept, present, missing, obsolete, fetch, free_bytes(folder) + given_back)


def _by_state(
    remote: RemoteCheckpoint, record: Record, folder: Path
) -> tuple[tuple[Kept, ...], tuple[HubFile, ...], tuple[HubFile, ...]]:
    kept: list[Kept] = []
    present: list[HubFile] = []
    missing: list[HubFile] = []
    for file in remote.files:
        known, path = record.kept.get(file.name), folder / file.name
        if not path.exists():
            missing.append(file)
        elif known is None:
            if path.stat().st_size != file.size_bytes:
                raise not_ours(path, remote.listing)
            present.append(file)
        elif not known.is_unchanged(folder):
            present.append(file)
        elif known.identity == file.identity:
            kept.append(known)
        else:
            missing.append(file)  # what is here is ours, of an earlier revision
    return tuple(kept), tuple(present), tuple(missing)


def not_ours(path: Path, listing: Listing) -> InputError:
    """What is said of a file that stands where one of the checkpoint's is to be."""
    return InputError(
        f"{path} is not the file that {listing.repository} has at {listing.commit[:12]}, and "
        "quantkit did not bring it: move it away, or choose another folder with --out"
    )


def partial_path(folder: Path, file: HubFile) -> Path:
    """Named by the content, so that it is never continued with another revision's bytes."""
    content = file.identity.partition(":")[2][:16]
    return folder / STATE / f"{file.name}.{content}.partial"


def _partial_bytes(folder: Path, file: HubFile) -> int:
    path = partial_path(folder, file)
    return min(path.stat().st_size, file.size_bytes) if path.exists() else 0
