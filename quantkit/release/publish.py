"""A finished build → a revision on the Hub: checked first, and visible at once at the end."""

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
from quantkit.release.names import CARD, check_branch, repository_name
from quantkit.release.sending import Sender
from quantkit.release.staging import Release, check_stage, stage

_SOURCE = re.compile(r"[\w.-]+/[\w.-]+(?:@[\w./-]+)?")


@dataclass(frozen=True)
class PublishJob:
    """What a person chooses.

    Attributes:
        to: OWNER, or OWNER/NAME.
        exact_name: `to` as it is, without `-GGUF`.
        levels: names; None: all that are meant for release and passed.
        private: of a repository that is made.
        branch: to commit to; None: main.
        propose: open a pull request instead.
        allow_failed: levels whose gate failed too, and their cards say so.
        replace: overwrite and remove what is in the way.
        base_model: OWNER/NAME[@REVISION] of the source, where the build does not know it.
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
    """A release that was checked, and is on this disk.

    Attributes:
        place: where it goes, as it is before.
        changes: what that takes.
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
    """What came of it.

    Attributes:
        commit: that the release is in.
        made: whether this run made it; else it was there.
        proposal: the pull request's revision, where there is one.
    """

    commit: str
    made: bool
    address: str
    proposal: str | None


def prepare(job: PublishJob, console: Console) -> Prepared:
    """Check the build of `job`, put its release together on this disk, and look where it goes.

    Nothing is changed on the Hub. Without a token it looks as anybody does.

    Raises:
        GateError: a level failed its gate.
        InputError: an unfinished or changed build, private words in it, no access, or files of
            somebody else in the way.
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
        check_writes(account)  # a proposal may be to anybody
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
    """Bring the release to the Hub, as far as it is not there.

    Raises:
        InputError: no access, no room, or somebody else's files in the way.
        EnvironmentFault: the network or the Hub failed, or recorded something else.
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
    # a commit whose answer was lost is this run's all the same
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
        raise InputError(f"{name} is the model's own repository; publish to another")
    if job.private and place.listing is not None and not place.listing.private:
        raise is_public(name)


def _source(build: Build, job: PublishJob, hub: Hub, console: Console) -> SourceCard:
    """What the model's card says, asked of the Hub where it came from there.

    What the artifacts have kept of it has to do where the Hub does not show it any more.
    """
    named = job.base_model
    if named is not None and not _SOURCE.fullmatch(named):
        raise InputError(f"--base-model {named!r} is not OWNER/NAME or OWNER/NAME@REVISION")
    own, source = HubAddress.parse(build.source).repository, HubAddress.parse(named or build.source)
    name = source.repository
    if build.commit is not None and name.lower() != own.lower():
        raise InputError(f"the build is of {own}, as its checkpoint.json says: leave --base-model")
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
            f"the source cannot be seen: {error}. Its licence and tags are those that the "
            "artifacts carry; whether it is gated is not known"
        )
        return from_metadata(metadata, name, commit)
    # by the name that it was built under: the Hub follows a repository that was renamed
    known = own if build.commit is not None else listing.repository
    return from_card(known, listing.commit, listing.card, listing.gated)


def _levels(
    build: Build, job: PublishJob, place: Place, console: Console
) -> tuple[BuiltLevel, ...]:
    """The levels of the release: those asked for, and those of this build that are there."""
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
        console.note(f"{names} of this build is there already, and stays on the card")
    return tuple(level for level in build.levels if level in found or level in there)


def _fits(build: Build, levels: Sequence[BuiltLevel], console: Console) -> Fits:
    """Which targets hold which level, as llama.cpp plans it."""
    from quantkit.llamacpp.memory_plan import asking

    headers = {level.name: build.header(level) for level in levels}
    metadata, _tensors = next(iter(headers.values()))
    tensors = {name: infos for name, (_metadata, infos) in headers.items()}
    with asking(), console.stage("targets") as progress:
        return fits_of(metadata, tensors, targets_of(build.target), progress)
