"""Where a release goes: whose token it is, and what the repository holds now."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import InputError
from quantkit.hub.errors import NotThereError
from quantkit.hub.reading import Hub, Listing
from quantkit.hub.writing import Account, HubWriter
from quantkit.release.names import repository_name

MAIN = "main"
PROPOSALS = "refs/pr/"
"""Where revisions of pull requests begin."""


@dataclass(frozen=True)
class Place:
    """Where a release goes, as it was when it was last looked at.

    Attributes:
        listing: what is there; None: nothing, not even the repository.
        revision: branch or pull request that is committed to.
        exists: whether the revision does.
        opens: whether the commit opens a pull request.
    """

    repository: str
    revision: str
    listing: Listing | None
    exists: bool = True
    opens: bool = False


def check_access(to: str, model: str) -> str:
    """See that publishing can succeed, before hours of work; returns the repository's name.

    Raises:
        InputError: no token, one that cannot write, or no name of a repository.
        EnvironmentFault: the Hub cannot be reached.
    """
    repository = repository_name(to, model)
    check_account(HubWriter(Hub().connection).account(), repository)
    return repository


def check_account(account: Account, repository: str) -> None:
    """See that the account may write to the repository's owner.

    Raises:
        InputError: its token only reads, or it is of somebody else.
    """
    owner = repository.partition("/")[0]
    if account.reads_only:
        raise InputError(
            f"the access token of {account.name} may only read; make one that writes, log in with "
            "'hf auth login' or set HF_TOKEN, then run again"
        )
    known = (account.name, *account.organizations)
    if owner.lower() not in (name.lower() for name in known):
        member = ", ".join(account.organizations)
        raise InputError(
            f"{account.name} cannot publish as {owner}: the token is of {account.name}"
            + (f", a member of {member}" if member else "")
            + f"; give --to {account.name}, or log in with another account"
        )


@dataclass(frozen=True)
class Proposal:
    """How a pull request that is open already is found."""

    writer: HubWriter
    title: str
    author: str


def look(hub: Hub, repository: str, branch: str | None, proposal: Proposal | None = None) -> Place:
    """What is there now.

    Args:
        branch: to commit to; None: main.
        proposal: the release is proposed, not committed.

    Raises:
        InputError: there is nothing to open a pull request in, or the Hub refuses.
        EnvironmentFault: the network or the Hub failed.
    """
    try:
        main = hub.listing(repository)
    except NotThereError:
        if proposal is not None:
            raise InputError(
                f"no repository {repository} to open a pull request in; publish without --pr"
            ) from None
        return Place(repository, branch or MAIN, None, exists=branch in (None, MAIN))
    name = main.repository
    if proposal is not None:
        known = proposal.writer.proposal(name, proposal.title, proposal.author)
        if known is None:
            return Place(name, MAIN, main, opens=True)
        return Place(name, known, hub.listing(name, known))
    if branch in (None, MAIN):
        return Place(name, MAIN, main)
    try:
        return Place(name, branch, hub.listing(name, branch))
    except NotThereError:
        return Place(name, branch, main, exists=False)
