"""Publishing a finished build: everything is checked first, and one commit makes it visible."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.hub_address import HubAddress
from quantkit.hub.errors import NotThereError
from quantkit.hub.reading import Hub
from quantkit.hub.writing import HubWriter, LocalFile
from quantkit.release.card.front_matter import SourceCard, from_card, from_metadata
from quantkit.release.changes import Changes
from quantkit.release.contents import Build, BuiltLevel, check_outputs, chosen, read_build
from quantkit.release.destination import (
    PROPOSALS,
    Place,
    Proposal,
    check_writes,
    is_public,
    look,
    owned,
)
from quantkit.release.fits import Fits, fits_of, targets_of
from quantkit.release.layout import CARD, check_branch, repository_name
from quantkit.release.sending import Sender
from quantkit.release.staging import Release, check_stage, stage

_SOURCE = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


@dataclass(frozen=True)
class PublishJob:
    """The user's choices.

    Attributes:
        to: OWNER or OWNER/NAME.
        exact_name: do not append `-GGUF` to the name.
        levels: names; None: all that passed, without baselines.
        private: make a new repository private.
        branch: to commit to; None: main.
        propose: open a pull request instead of committing.
        allow_failed: publish levels that failed their gate too; the card says so.
        replace: overwrite and remove files that are in the way.
        base_model: OWNER/NAME[@REVISION] of the source, if the build does not know it.
        dry_run: show what would be done, and change nothing.
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
    """A release that was checked and is on this disk.

    Attributes:
        place: where it goes, as it was before.
        changes: what has to be changed there.
    """

    build: Build
    source: SourceCard
    levels: tuple[BuiltLevel, ...]
    files: tuple[LocalFile, ...]
    place: Place
    changes: Changes
    sender: Sender
    proposal: Proposal | None


@dataclass(frozen=True)
class Published:
    """A release on the Hub.

    Attributes:
        commit: that has the release.
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
    build = read_build(job.folder)
    repository = repository_name(job.to, build.model, exact=job.exact_name)
    if job.branch is not None:
        check_branch(job.branch)
    dry = " (dry run: nothing is changed)" if job.dry_run else ""
    console.heading(f"quantkit publish {job.folder} → {repository}{dry}")
    hub = Hub(purpose="look up")
    writer = HubWriter(hub.connection, bars=console.interactive)
    account = None if job.dry_run and not hub.connection.has_token else writer.account()
    if account is not None and job.propose:
        check_writes(account)  # anybody's repository accepts a proposal
    elif account is not None:
        repository = owned(account, repository)
    title = f"{build.model} GGUF by quantkit"
    proposal = Proposal(title, account.name if account else None) if job.propose else None
    with console.stage("look up"):
        place = look(hub, writer, repository, job.branch, proposal)
        source = _source(build, job, hub, console)
    _check_place(place, source, job)
    levels = _levels(build, job, place, console)
    with console.stage("hash") as progress:
        check_outputs(build, levels, progress)
    fits = _fits(build, levels, console)
    release = Release(build, levels, source, fits, place.repository, hub.connection.endpoint)
    files = stage(release)
    check_stage(build.folder, files)
    text = f"Levels: {', '.join(level.name for level in levels)}"
    sender = Sender(hub, writer, console, files, job.replace, job.private, title, text)
    changes = sender.changes(place)
    if account is not None and not changes.nothing:
        card = next(file for file in files if file.name == CARD)
        writer.check_card(place.repository, card.content().decode())
    return Prepared(build, source, levels, files, place, changes, sender, proposal)


def send(prepared: Prepared, job: PublishJob) -> Published:
    """Upload the files that are not on the Hub yet, and commit.

    Raises:
        InputError: access is denied, storage is full, or somebody else's files are in the way.
        EnvironmentFault: the network or the Hub failed, or the Hub recorded other bytes.
    """
    sender, place = prepared.sender, prepared.place
    endpoint = sender.hub.connection.endpoint

    def look_again() -> Place:
        return look(sender.hub, sender.writer, place.repository, job.branch, prepared.proposal)

    after, made = sender.send(look_again, place)
    proposal = after.revision if after.revision.startswith(PROPOSALS) else None
    if made is not None:
        proposal = made.proposal or proposal
        return Published(made.commit, True, _address(endpoint, after, proposal), proposal)
    assert after.listing is not None
    # a commit whose answer was lost was made by this run
    ours = not prepared.changes.nothing
    return Published(after.listing.commit, ours, _address(endpoint, after, proposal), proposal)


def _address(endpoint: str, place: Place, proposal: str | None) -> str:
    """The release's page."""
    page, revision = f"{endpoint}/{place.repository}", quote(place.revision, safe="")
    if proposal is not None:
        return f"{page}/discussions/{proposal.rpartition('/')[2]}"
    return page if place.revision == "main" else f"{page}/tree/{revision}"


def _check_place(place: Place, source: SourceCard, job: PublishJob) -> None:
    name = place.repository
    if source.repository is not None and source.repository.lower() == name.lower():
        raise InputError(f"{name} is the original model's repository; choose another with --to")
    if job.private and place.listing is not None and not place.listing.private:
        raise is_public(name)


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
    metadata, _tensors = build.header(build.levels[0])
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
    build: Build, job: PublishJob, place: Place, console: Console
) -> tuple[BuiltLevel, ...]:
    """The chosen levels, and those of this build that the repository already has."""
    found = chosen(build, job.levels, allow_failed=job.allow_failed)
    if place.listing is None:
        return found
    hashes = {file.name: file.sha256 for file in place.listing.files}
    written = {output.path: output.sha256 for output in build.outputs(build.levels)}

    def is_there(level: BuiltLevel) -> bool:
        return all(
            hashes.get(name) == written[path.relative_to(build.folder).as_posix()]
            for name, path in level.files.items()
        )

    others = [level for level in build.levels if level not in found]
    there = [o for o in others if (o.result.passed or job.allow_failed) and is_there(o)]
    if there:
        names = ", ".join(level.name for level in there)
        console.note(f"{names} of this build is published already, and stays on the card")
    return tuple(level for level in build.levels if level in found or level in there)


def _fits(build: Build, levels: Sequence[BuiltLevel], console: Console) -> Fits:
    """Which targets hold which level, as llama.cpp reports their memory."""
    from quantkit.llamacpp.memory_plan import asking

    headers = {level.name: build.header(level) for level in levels}
    metadata, _tensors = next(iter(headers.values()))
    tensors = {name: infos for name, (_metadata, infos) in headers.items()}
    with asking(), console.stage("targets") as progress:
        return fits_of(metadata, tensors, targets_of(build.target), progress)
