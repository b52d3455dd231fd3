"""Sending a release: what a repository lacks, one commit, and a comparison with its record."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from quantkit.core.console import Console
from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.hub.errors import ConflictError, NotThereError
from quantkit.hub.reading import Hub, HubFile, Listing
from quantkit.hub.writing import Committed, HubWriter, LocalFile, Upload
from quantkit.release.destination import Destination
from quantkit.release.layout import CARD, MANIFEST, SUMS, parse_sums

ATTEMPTS = 4
"""At a commit, when others commit first."""
SMALL_BYTES = 64 << 20
"""Limit of SHA256SUMS and of a card that is read from the repository."""
SHOWN = 4
"""Number of files that a message names."""
_FRONT_MATTER = re.compile(rb"\s*(?:---\r?\n(?:(?!---).*\r?\n)*---\s*)?")


@dataclass(frozen=True)
class Changes:
    """What a commit has to do: files to send, and names that stay or go, of an earlier release."""

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
    there: Mapping[str, HubFile],
    earlier: Mapping[str, str],
    read: Callable[[HubFile], bytes],
    *,
    replace: bool,
) -> Changes:
    """Compare a release with what a repository holds.

    Files that somebody else put or changed there are only overwritten, and files of an earlier
    release only removed, with `replace`.

    Args:
        earlier: name → SHA-256 of the files of an earlier release, its SHA256SUMS too.
        read: the content of a file of the repository, where the record does not decide.

    Raises:
        InputError: something is in the way, and `replace` is not given.
    """

    def is_ours(remote: HubFile) -> bool:
        known = earlier.get(remote.name)
        if known is not None and known == (remote.sha256 or sha256(read(remote)).hexdigest()):
            return True
        # the Hub makes a card of metadata only where a licence is chosen for a new repository
        is_small_card = remote.name == CARD and remote.size_bytes <= SMALL_BYTES
        return is_small_card and _FRONT_MATTER.fullmatch(read(remote)) is not None

    kept = [f.name for f in files if f.name in there and is_same(f, there[f.name])]
    sent = [f for f in files if f.name not in kept]
    foreign = [f.name for f in sent if f.name in there and not is_ours(there[f.name])]
    names = {file.name for file in files}
    # hidden files, such as .gitattributes, are the Hub's and no part of a release
    left = sorted(n for n in earlier if n in there and n not in names and "/." not in f"/{n}")
    reasons = []
    if foreign:
        reasons.append(f"{_some(foreign)} not as quantkit published")
    if left:
        reasons.append(
            f"{_some(left)} there, of an earlier release that this one does not replace (--levels "
            "and --allow-failed say which levels it has)"
        )
    if reasons and not replace:
        raise InputError(
            f"{repository} is not changed: {'; '.join(reasons)}; publish to another repository, or "
            "give --replace to overwrite and remove them (the Hub keeps them in the repository's "
            "history)"
        )
    return Changes(tuple(sent), tuple(kept), tuple(left))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more} {'is' if len(names) == 1 else 'are'}"


@dataclass(frozen=True)
class Sender:
    """Publishes `files` to where `look` looks, as `quantkit publish` was asked to."""

    hub: Hub
    writer: HubWriter
    console: Console
    files: Sequence[LocalFile]
    look: Callable[[], Destination]
    replace: bool
    private: bool
    title: str
    text: str

    def changes(self, destination: Destination) -> Changes:
        """What a commit has to change; raises as `changes_to` and `Hub.read` do."""
        listing = destination.listing
        if listing is None:
            return Changes(tuple(self.files), (), ())

        def read(file: HubFile) -> bytes:
            return b"".join(self.hub.read(listing, file))

        there = {file.name: file for file in listing.files}
        earlier = _earlier_release(there, read)
        return changes_to(
            destination.repository, self.files, there, earlier, read, replace=self.replace
        )

    def send(self, destination: Destination) -> tuple[Destination, Committed | None]:
        """Upload what is missing, commit, and compare; None if nothing was missing.

        Raises:
            InputError: no access, no room, or somebody else's files in the way.
            EnvironmentFault: the network or the Hub failed, or recorded something else.
        """
        for attempt in range(1, ATTEMPTS + 1):
            destination = self._created(destination)
            changes = self.changes(destination)
            if changes.nothing:
                return destination, None
            try:
                made = self._commit(destination, changes)
            except ConflictError:
                if attempt == ATTEMPTS:
                    raise
                destination = self.look()
                self.console.note(
                    f"somebody committed to {destination.repository} first; looking again"
                )
            except EnvironmentFault as fault:  # perhaps only the answer was lost
                try:
                    destination = self.look()
                except QuantkitError:
                    raise fault from None
                if self.changes(destination).nothing:
                    return destination, None
                raise
            else:
                self._check(self._recorded(destination.repository, made))
                return destination, made
        raise AssertionError("unreachable")

    def _created(self, destination: Destination) -> Destination:
        """`destination`, with its repository and branch."""
        if destination.listing is not None and destination.exists:
            return destination
        if destination.listing is None:
            self.writer.create(destination.repository, private=self.private)
        if not destination.exists:
            self.writer.create_branch(destination.repository, destination.revision)
        destination = self.look()
        if self.private:
            destination.check_private()
        return destination

    def _commit(self, destination: Destination, changes: Changes) -> Committed:
        listing = destination.listing
        assert listing is not None
        upload = Upload(
            self.hub, destination.repository, destination.revision, destination.opens,
            self.console.note,
        )  # fmt: skip
        upload.send(changes.sent)
        return upload.commit(changes.removed, listing.commit, self.title, self.text)

    def _recorded(self, repository: str, made: Committed) -> Listing:
        """The Hub's listing of the commit, which may take a moment."""
        for delay_s in (*self.hub.delays_s, None):
            try:
                return self.hub.listing(repository, made.proposal or made.commit)
            except NotThereError:
                if delay_s is not None:
                    time.sleep(delay_s)
        raise EnvironmentFault(
            f"commit {made.commit[:12]} was made in {repository}, and the Hub does not list it "
            "yet; run again in a minute, to compare what it has recorded"
        )

    def _check(self, listing: Listing) -> None:
        """Compare every file with the Hub's record of it."""
        there = {file.name: file for file in listing.files}
        wrong = [f.name for f in self.files if f.name not in there or not is_same(f, there[f.name])]
        if wrong:
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise EnvironmentFault(
                f"{listing.repository} at {listing.commit[:12]} does not hold what was sent: the "
                f"Hub records another size or hash of {wrong[0]}{more}; run again with --replace"
            )


def _earlier_release(
    there: Mapping[str, HubFile], read: Callable[[HubFile], bytes]
) -> dict[str, str]:
    """Name → SHA-256 of an earlier release of quantkit there; empty if there is none.

    Others have a SHA256SUMS too: ours lists a release.json that is there unchanged.
    """
    file, manifest = there.get(SUMS), there.get(MANIFEST)
    if file is None or manifest is None or SMALL_BYTES < max(file.size_bytes, manifest.size_bytes):
        return {}
    content = read(file)
    try:
        found = parse_sums(content.decode("utf-8", "replace"))
    except InputError:
        return {}
    if found.get(MANIFEST) != (manifest.sha256 or sha256(read(manifest)).hexdigest()):
        return {}
    return found | {SUMS: sha256(content).hexdigest()}
