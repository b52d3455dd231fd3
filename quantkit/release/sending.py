"""A release on its way: uploaded, visible with one commit, and compared with the Hub's record."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.console import Console
from quantkit.errors import EnvironmentFault, InputError
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.hub.writing import Committed, ConflictError, HubWriter, LocalFile
from quantkit.release.changes import Changes, changes_to, is_same
from quantkit.release.names import SUMS
from quantkit.release.place import Place
from quantkit.release.sums import parse_sums

ATTEMPTS = 4
"""At a commit that others come before."""
SMALL_BYTES = 64 << 20
"""Limit of a text that is read from the repository: its SHA256SUMS, its card."""
_FRONT_MATTER = re.compile(r"\A\s*(---\r?\n.*?\n---\s*)?\Z", re.DOTALL)


@dataclass(frozen=True)
class Sender:
    """Brings `files` to a repository.

    Attributes:
        replace: overwrite and remove what is in the way.
        private: of a repository that is made.
        title, text: of the commit.
    """

    hub: Hub
    writer: HubWriter
    console: Console
    files: Sequence[LocalFile]
    replace: bool
    private: bool
    title: str
    text: str

    def changes(self, place: Place) -> Changes:
        """What has to be done there.

        Raises:
            InputError: something of somebody else is in the way.
            EnvironmentFault: the network or the Hub failed.
        """
        listing = place.listing
        if listing is None:
            return Changes(tuple(self.files), (), ())
        there = {file.name: file for file in listing.files}
        return changes_to(
            place.repository,
            self.files,
            listing.files,
            self._earlier(listing, there),
            lambda file: self._sha256(listing, file),
            lambda file: self._is_empty_card(listing, file),
            replace=self.replace,
        )

    def send(self, look: Callable[[], Place], place: Place) -> tuple[Place, Committed | None]:
        """Upload what is missing, commit, and compare; None where it was there after all.

        Args:
            look: tells anew what is there, where somebody else came before.
            place: as it was when it was last looked at.

        Raises:
            InputError: no access, no room, or somebody else's files in the way.
            EnvironmentFault: the network or the Hub failed, or recorded something else.
        """
        for attempt in range(1, ATTEMPTS + 1):
            place = self._prepared(place, look)
            changes = self.changes(place)
            if changes.nothing:
                return place, None
            try:
                made = self._commit(place, changes)
            except ConflictError:
                if attempt == ATTEMPTS:
                    raise
                place = look()
                self.console.note(f"somebody committed to {place.repository} first; looking again")
            except EnvironmentFault:
                # the answer may be all that was lost
                place = look()
                if self.changes(place).nothing:
                    return place, None
                raise
            else:
                revision = made.proposal or made.commit
                self.check(self.hub.listing(place.repository, revision))
                return place, made
        raise AssertionError("unreachable")

    def check(self, listing: Listing) -> None:
        """Compare every file with what the Hub has recorded of it.

        Raises:
            EnvironmentFault: one is missing there, or has another size or hash.
        """
        there = {file.name: file for file in listing.files}
        wrong = [f.name for f in self.files if f.name not in there or not is_same(f, there[f.name])]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise EnvironmentFault(
                f"{listing.repository} at {listing.commit[:12]} does not hold what was sent: the "
                f"Hub records another size or hash of {wrong[0]}{more}; run again with --replace"
            )

    def _prepared(self, place: Place, look: Callable[[], Place]) -> Place:
        """`place` with a repository and a branch."""
        if place.listing is None:
            self.writer.create(place.repository, private=self.private)
        if not place.exists:
            self.writer.create_branch(place.repository, place.revision)
        return look() if place.listing is None or not place.exists else place

    def _commit(self, place: Place, changes: Changes) -> Committed:
        listing = place.listing
        assert listing is not None
        with self.console.stage("upload") as progress:
            total = sum(file.size_bytes for file in changes.sent)
            progress.start(total, "B", f"to {place.repository}")
            upload = self.writer.upload(
                place.repository, place.revision, propose=place.opens, on_wait=progress.note
            )
            upload.send(changes.sent, progress.advance)
        with self.console.stage("commit"):
            return upload.commit(changes.removed, listing.commit, self.title, self.text)

    def _earlier(self, listing: Listing, there: Mapping[str, HubFile]) -> dict[str, str]:
        """What the repository's own SHA256SUMS says; nothing where it is no such file."""
        file = there.get(SUMS)
        if file is None or file.size_bytes > SMALL_BYTES:
            return {}
        try:
            return parse_sums(self._content(listing, file).decode("utf-8", "replace"))
        except InputError:
            return {}

    def _content(self, listing: Listing, file: HubFile) -> bytes:
        return b"".join(self.hub.read(listing, file))

    def _sha256(self, listing: Listing, file: HubFile) -> str:
        import hashlib

        digest = hashlib.sha256()
        for piece in self.hub.read(listing, file):
            digest.update(piece)
        return digest.hexdigest()

    def _is_empty_card(self, listing: Listing, file: HubFile) -> bool:
        if file.size_bytes > SMALL_BYTES:
            return False
        text = self._content(listing, file).decode("utf-8", "replace")
        return _FRONT_MATTER.fullmatch(text) is not None
