"""Publishing a finished build: everything is checked first, and one commit makes it visible."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.paths import HubAddress
from quantkit.hub.errors import NotThereError
from quantkit.hub.reading import Hub
from quantkit.hub.writing import HubWriter, LocalFile
from quantkit.release.card.front_matter import SourceCard, from_card, from_metadata
from quantkit.release.contents import Build, BuiltLevel, check_outputs, chosen, read_build
from quantkit.release.destination import MAIN, PROPOSALS, Destination, Proposal, look, writable
from quantkit.release.fits import fits_of, targets_of
from quantkit.release.layout import CARD, check_branch, repository_name
from quantkit.release.sending import Changes, Sender
from quantkit.release.staging import check_stage, stage

_SOURCE = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


@dataclass(frozen=True)
class PublishJob:
    """The options of `quantkit publish`.

    Attributes:
        to: OWNER or OWNER/NAME.
        levels: None: all that passed, without baselines.
        branch: None: main.
        propose: `--pr`.
        base_model: OWNER/NAME[@REVISION] of the source, if the build does not know it.
    """

    folder: Path
    to: str
    exact_name: bool = False
    levels: tuple[str, ...] | None = None
    private: bool = False
    branch: str | None = None
    propose: bool = False
    allow_failed: bool = False
    replace: bool = False
    base_model: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Prepared:
    """A release that was checked and is on this disk, and what it changes at its destination."""

    build: Build
    source: SourceCard
    levels: tuple[BuiltLevel, ...]
    files: tuple[LocalFile, ...]
    destination: Destination
    changes: Changes
    sender: Sender


@dataclass(frozen=True)
class Published:
    """A release on the Hub.

    Attributes:
        made: whether this run made the commit; otherwise it was there.
        proposal: revision of the pull request, if there is one.
    """

    commit: str
    made: bool
    address: str
    proposal: str | None


def prepare(job: PublishJob, console: Console) -> Prepared:
    """Check the build of `job`, make its release on this disk, and look up its destination.

    Nothing is changed on the Hub. A dry run needs no token.

    Raises:
        GateError: a level failed its gate.
        InputError: the build is unfinished or was changed, the release would reveal this machine,
            access is denied, or somebody else's files are in the way.
        EnvironmentFault: the network, the Hub or the disk failed.
    """
    from quantkit.llamacpp.memory_plan import asking

    build = read_build(job.folder)
    repository = repository_name(job.to, build.model, exact=job.exact_name)
    if job.branch is not None:
        check_branch(job.branch)
    dry = " (dry run: nothing is changed)" if job.dry_run else ""
    console.heading(f"quantkit publish {job.folder} → {repository}{dry}")
    hub = Hub(purpose="look up")
    writer = HubWriter(hub, bars=console.interactive)
    account = None if job.dry_run and not hub.token else writer.account()
    if account is not None:
        repository = writable(account, repository, propose=job.propose)
    title = f"{build.model} GGUF by quantkit"
    proposal = Proposal(title, account.name if account else None) if job.propose else None
    look_again = partial(look, hub, writer, repository, job.branch, proposal)
    with console.stage("look up"):
        destination = look_again()
        source = _source(build, job, hub, console)
    name = destination.repository
    if source.repository is not None and source.repository.lower() == name.lower():
        raise InputError(f"{name} is the original model's repository; choose another with --to")
    if job.private:
        destination.check_private()
    levels = _levels(build, job, destination, console)
    with console.stage("hash") as progress:
        check_outputs(build, levels, progress)
    tensors = {level.name: level.artifact().tensors for level in levels}
    metadata = levels[0].artifact().metadata
    with asking(), console.stage("targets") as progress:
        fits = fits_of(metadata, tensors, targets_of(build.target), progress)
    files = stage(build, levels, source, fits, name, hub.endpoint)
    check_stage(build.folder, files)
    text = f"Levels: {', '.join(level.name for level in levels)}"
    sender = Sender(hub, writer, console, files, look_again, job.replace, job.private, title, text)
    changes = sender.changes(destination)
    if account is not None and not changes.nothing:
        card = next(file for file in files if file.name == CARD)
        writer.check_card(name, card.content().decode())
    return Prepared(build, source, levels, files, destination, changes, sender)


def send(prepared: Prepared) -> Published:
    """Upload the files that are not on the Hub yet, and commit.

    Raises:
        InputError: access is denied, storage is full, or somebody else's files are in the way.
        EnvironmentFault: the network or the Hub failed, or the Hub recorded other bytes.
    """
    after, made = prepared.sender.send(prepared.destination)
    proposal = None if made is None else made.proposal
    if after.revision.startswith(PROPOSALS):
        proposal = proposal or after.revision
    address = f"{prepared.sender.hub.endpoint}/{after.repository}"
    if proposal is not None:
        address += f"/discussions/{proposal.rpartition('/')[2]}"
    elif after.revision != MAIN:
        address += f"/tree/{quote(after.revision, safe='')}"
    if made is not None:
        return Published(made.commit, True, address, proposal)
    assert after.listing is not None
    # a commit whose answer was lost was made by this run
    return Published(after.listing.commit, not prepared.changes.nothing, address, proposal)


def _source(build: Build, job: PublishJob, hub: Hub, console: Console) -> SourceCard:
    """What the source's card says: on the Hub, or as the artifacts' metadata has kept it."""
    named = job.base_model
    if named is not None and not _SOURCE.fullmatch(named):
        raise InputError(
            f"Invalid --base-model {named!r}: expected OWNER/NAME or OWNER/NAME@REVISION"
        )
    own, source = HubAddress.parse(build.source).repository, HubAddress.parse(named or build.source)
    name = source.repository
    if build.commit is not None and name.lower() != own.lower():
        raise InputError(
            f"the build is of {own} (checkpoint.json), not of {name}; run without --base-model"
        )
    metadata = build.levels[0].artifact().metadata
    if "/" not in name:
        return from_metadata(metadata)
    commit = None if named else build.commit
    try:
        listing = hub.listing(name, commit or source.revision)
    except NotThereError as error:
        if named is not None:
            raise
        console.note(
            f"the source is not visible: {error}. Licence and tags are taken from the artifacts; "
            "whether it is gated is not known"
        )
        return from_metadata(metadata, name, commit)
    # a renamed repository keeps the name that it was built under
    known = own if build.commit is not None else listing.repository
    return from_card(known, listing.commit, listing.card, listing.gated)


def _levels(
    build: Build, job: PublishJob, destination: Destination, console: Console
) -> tuple[BuiltLevel, ...]:
    """The chosen levels, and those of this build that the repository already has."""
    found = chosen(build, job.levels, allow_failed=job.allow_failed)
    if destination.listing is None:
        return found
    hashes = {file.name: file.sha256 for file in destination.listing.files}
    written = {build.folder / o.path: o.sha256 for o in build.outputs(build.levels)}
    there = [
        level
        for level in build.levels
        if level not in found
        and (level.result.passed or job.allow_failed)
        and all(hashes.get(name) == written[path] for name, path in level.files.items())
    ]
    if there:
        names = ", ".join(level.name for level in there)
        console.note(f"{names} of this build is published already, and stays on the card")
    return tuple(level for level in build.levels if level in found or level in there)
