"""What a release changes in a repository: files that are new, the same, or in the way."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.hub.reading import HubFile
from quantkit.hub.writing import LocalFile
from quantkit.release.layout import CARD

SHOWN = 4
"""Number of files that a message names."""


@dataclass(frozen=True)
class Changes:
    """What a commit has to do.

    Attributes:
        sent: files that are missing or different in the repository.
        kept: names of files that are the same there.
        removed: names of files of an earlier release that this one does not have.
    """

    sent: tuple[LocalFile, ...]
    kept: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def nothing(self) -> bool:
        return not self.sent and not self.removed


def is_same(local: LocalFile, remote: HubFile) -> bool:
    """Whether the Hub's record of `remote` matches the bytes of `local` as they were checked."""
    if local.size_bytes != remote.size_bytes:
        return False
    if remote.sha256 is not None:
        return remote.sha256 == local.sha256
    return local.blob_id is not None and remote.blob_id == local.blob_id


def changes_to(
    repository: str,
    files: Sequence[LocalFile],
    there: Collection[HubFile],
    earlier: Mapping[str, str],
    sha256: Callable[[HubFile], str],
    is_empty_card: Callable[[HubFile], bool],
    *,
    replace: bool,
) -> Changes:
    """Compare a release with what a repository holds.

    Files that somebody else put or changed there are only overwritten, and files of an earlier
    release only removed, with `replace`.

    Args:
        there: the repository's files.
        earlier: name → SHA-256 of the files of an earlier release, its SHA256SUMS too.
        sha256: reads a file of the repository, where the record does not decide.
        is_empty_card: whether a README.md has metadata only.
        replace: overwrite and remove.

    Raises:
        InputError: something is in the way, and `replace` is not given.
    """
    by_name = {file.name: file for file in there}
    sent, kept, foreign = [], [], []
    for file in files:
        remote = by_name.get(file.name)
        if remote is not None and is_same(file, remote):
            kept.append(file.name)
            continue
        sent.append(file)
        if remote is None:
            continue
        known = earlier.get(file.name)
        ours = known is not None and known == (remote.sha256 or sha256(remote))
        if not ours and not (file.name == CARD and is_empty_card(remote)):
            foreign.append(file.name)
    ours_now = {file.name for file in files}
    left = sorted(n for n in earlier if n in by_name and n not in ours_now and not _is_hidden(n))
    if (foreign or left) and not replace:
        raise InputError(_in_the_way(repository, foreign, left))
    return Changes(tuple(sent), tuple(kept), tuple(left))


def _is_hidden(name: str) -> bool:
    """Whether it is not part of a release: .gitattributes is the Hub's."""
    return any(part.startswith(".") for part in name.split("/"))


def _in_the_way(repository: str, foreign: Sequence[str], left: Sequence[str]) -> str:
    reasons = []
    if foreign:
        reasons.append(f"{_some(foreign)} not as quantkit published")
    if left:
        reasons.append(
            f"{_some(left)} there, of an earlier release that this one does not replace (--levels "
            "and --allow-failed say which levels it has)"
        )
    return (
        f"{repository} is not changed: {'; '.join(reasons)}; publish to another repository, or "
        "give --replace to overwrite and remove them (the Hub keeps them in the repository's "
        "history)"
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"
