"""Where a release goes: whose token it is, and what the repository holds now."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.core.errors import InputError
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


def check_access(to: str, model: str, *, private: bool) -> None:
    """See that publishing can succeed, before hours of work.

    Raises:
        InputError: no token, one that cannot write, no name of a repository, or a public one
            where a private one was asked for.
        EnvironmentFault: the Hub cannot be reached.
    """
    hub = Hub(purpose="look up")
    writer = HubWriter(hub.connection)
    repository = owned(writer.account(), repository_name(to, model))
    place = look(hub, writer, repository, None)
    if private and place.listing is not None and not place.listing.private:
        raise is_public(place.repository)


def is_public(repository: str) -> InputError:
    """What is said of a repository that was to be private."""
    return InputError(f"{repository} exists, and is public: leave --private out, or choose another")


def check_writes(account: Account) -> None:
    """See that the token is not one that only reads.

    Raises:
        InputError: it is.
    """
    if account.reads_only:
        raise InputError(
            f"the access token of {account.name} may only read; make one that writes, log in with "
            "'hf auth login' or set HF_TOKEN, then run again"
        )


def owned(account: Account, repository: str) -> str:
    """`repository` with its owner as the Hub spells it, to whom the account may write.

    Raises:
        InputError: the token only reads, or it is of somebody else.
    """
    check_writes(account)
    owner, _, name = repository.partition("/")
    known = {one.lower(): one for one in (account.name, *account.organizations)}
    if owner.lower() not in known:
        member = ", ".join(account.organizations)
        raise InputError(
            f"{account.name} cannot publish as {owner}: the token is of {account.name}"
            + (f", a member of {member}" if member else "")
            + f"; give --to {account.name}, or log in with another account"
        )
    return f"{known[owner.lower()]}/{name}"


@dataclass(frozen=True)
class Proposal:
    """How a pull request that is open already is found.

    Attributes:
        author: of it; None: nobody is logged in, so none is looked for.
    """

    title: str
    author: str | None


def look(
    hub: Hub,
    writer: HubWriter,
    repository: str,
    branch: str | None,
    proposal: Proposal | None = None,
) -> Place:
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
        known = None
        if proposal.author is not None:
            known = writer.proposal(name, proposal.title, proposal.author)
        if known is None:
            return Place(name, MAIN, main, opens=True)
        return Place(name, known, hub.listing(name, known))
    if branch is None or branch == MAIN:
        return Place(name, MAIN, main)
    if branch not in writer.branches(name):
        return Place(name, branch, main, exists=False)
    return Place(name, branch, hub.listing(name, branch))
