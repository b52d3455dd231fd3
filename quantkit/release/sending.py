"""Sending a release: upload, one commit, and a comparison with the Hub's record."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.core.console import Console
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.hub.errors import NotThereError
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.hub.writing import Committed, ConflictError, HubWriter, LocalFile
from quantkit.release.changes import Changes, changes_to, is_same
from quantkit.release.destination import Place, is_public
from quantkit.release.layout import MANIFEST, SUMS, parse_sums

ATTEMPTS = 4
"""At a commit, when others commit first."""
SMALL_BYTES = 64 << 20
"""Limit of SHA256SUMS and of a card that is read from the repository."""
_FRONT_MATTER = re.compile(r"\s*(?:---\r?\n(?:(?!---).*\r?\n)*---\s*)?")


@dataclass(frozen=True)
class Sender:
    """Publishes `files` to a repository.

    Attributes:
        replace: overwrite and remove what is in the way.
        private: whether a new repository is private.
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
        """What a commit has to change.

        Raises:
            InputError: files of somebody else are in the way.
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
        """Upload what is missing, commit, and compare; None if nothing was missing.

        Args:
            look: looks at the repository again, after somebody else's commit.
            place: as it was last seen.

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
            except EnvironmentFault as fault:
                after = self._after(fault, look)
                if self.changes(after).nothing:
                    return after, None
                raise
            else:
                self.check(self._recorded(place.repository, made))
                return place, made
        raise AssertionError("unreachable")

    def _after(self, fault: EnvironmentFault, look: Callable[[], Place]) -> Place:
        """The repository after a commit whose answer was perhaps lost."""
        try:
            return look()
        except QuantkitError:
            raise fault from None

    def _recorded(self, repository: str, made: Committed) -> Listing:
        """The Hub's listing of the commit, which may take a moment."""
        for delay_s in (*self.hub.connection.delays_s, None):
            try:
                return self.hub.listing(repository, made.proposal or made.commit)
            except NotThereError:
                if delay_s is None:
                    break
                time.sleep(delay_s)
        raise EnvironmentFault(
            f"commit {made.commit[:12]} was made in {repository}, and the Hub does not list it "
            "yet; run again in a minute, to compare what it has recorded"
        )

    def check(self, listing: Listing) -> None:
        """Compare every file with the Hub's record of it.

        Raises:
            EnvironmentFault: one is missing, or has another size or hash.
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
        """`place`, with its repository and branch created."""
        if place.listing is None:
            self.writer.create(place.repository, private=self.private)
        if not place.exists:
            self.writer.create_branch(place.repository, place.revision)
        if place.listing is not None and place.exists:
            return place
        place = look()
        if self.private and place.listing is not None and not place.listing.private:
            raise is_public(place.repository)
        return place

    def _commit(self, place: Place, changes: Changes) -> Committed:
        listing = place.listing
        assert listing is not None
        upload = self.writer.upload(
            place.repository, place.revision, propose=place.opens, on_wait=self.console.note
        )
        upload.send(changes.sent)
        return upload.commit(changes.removed, listing.commit, self.title, self.text)

    def _earlier(self, listing: Listing, there: Mapping[str, HubFile]) -> dict[str, str]:
        """Name → SHA-256 of an earlier release of quantkit there; empty if there is none.

        Others have a SHA256SUMS too: ours lists a release.json that is there unchanged.
        """
        file, manifest = there.get(SUMS), there.get(MANIFEST)
        if file is None or manifest is None:
            return {}
        if max(file.size_bytes, manifest.size_bytes) > SMALL_BYTES:
            return {}
        content = self._content(listing, file)
        try:
            found = parse_sums(content.decode("utf-8", "replace"))
        except InputError:
            return {}
        if found.get(MANIFEST) != (manifest.sha256 or self._sha256(listing, manifest)):
            return {}
        return found | {SUMS: hashlib.sha256(content).hexdigest()}

    def _content(self, listing: Listing, file: HubFile) -> bytes:
        return b"".join(self.hub.read(listing, file))

    def _sha256(self, listing: Listing, file: HubFile) -> str:
        digest = hashlib.sha256()
        for piece in self.hub.read(listing, file):
            digest.update(piece)
        return digest.hexdigest()

    def _is_empty_card(self, listing: Listing, file: HubFile) -> bool:
        if file.size_bytes > SMALL_BYTES:
            return False
        text = self._content(listing, file).decode("utf-8", "replace")
        return _FRONT_MATTER.fullmatch(text) is not None
