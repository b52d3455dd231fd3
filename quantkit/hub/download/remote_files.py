"""Files of a repository on the Hub that are to be brought here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from quantkit.hub.reading import HubFile, Listing


@dataclass(frozen=True, kw_only=True)
class RemoteFiles:
    """What is wanted of a repository, and what a folder must not hold beside it.

    Attributes:
        files: what is wanted, in the order in which it is fetched.
        contents: files that were read already, verified.
        foreign: patterns of names that would be read as part of it where they lie in its folder,
            so that none may be there that it does not have.
        chosen_with: the option or variable that chooses the folder, for messages.
    """

    listing: Listing
    files: tuple[HubFile, ...]
    contents: Mapping[str, bytes] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    chosen_with: str = "--out"

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)
