"""Where a release goes: the account of the token, and the repository as it is now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from quantkit.core.errors import InputError
from quantkit.hub.errors import NotThereError
from quantkit.hub.reading import Hub, Listing
from quantkit.hub.writing import Account, HubWriter
from quantkit.release.layout import repository_name

MAIN = "main"
PROPOSALS = "refs/pr/"
"""Prefix of the revisions of pull requests."""


@dataclass(frozen=True)
class Destination:
    """Where a release goes, as it was last seen.

    Attributes:
        revision: branch or pull request to commit to, and whether it `exists`.
        listing: its files; None: there is no repository yet.
        opens: whether the commit opens a pull request.
    """

    repository: str
    revision: str
    listing: Listing | None
    exists: bool = True
    opens: bool = False

    def check_private(self) -> None:
        """Raise an InputError where the repository is there, and public."""
        if self.listing is not None and not self.listing.private:
            raise InputError(
                f"{self.repository} exists, and is public: leave --private out, or choose another"
            )


def check_access(to: str, model: str, *, private: bool) -> None:
    """Check that publishing can succeed, before hours of work.

    Raises:
        InputError: no token with write access, an invalid repository id, or a public repository
            where a private one was requested.
        EnvironmentFault: the Hub cannot be reached.
    """
    hub = Hub(purpose="look up")
    writer = HubWriter(hub)
    destination = look(hub, writer, writable(writer.account(), repository_name(to, model)), None)
    if private:
        destination.check_private()


def writable(account: Account, repository: str, *, propose: bool = False) -> str:
    """`repository` with its owner as the Hub spells it; any may get a pull request (`propose`).

    Raises:
        InputError: the token only reads, or belongs to another account.
    """
    if account.reads_only:
        raise InputError(
            f"the access token of {account.name} is read-only; make one with write access, log in "
            "with 'hf auth login' or set HF_TOKEN, then run again"
        )
    if propose:
        return repository
    owner, _, name = repository.partition("/")
    known = {one.lower(): one for one in (account.name, *account.organizations)}
    if owner.lower() not in known:
        member = ", ".join(account.organizations)
        raise InputError(
            f"{account.name} cannot publish as {owner}: the token belongs to {account.name}"
            + (f", a member of {member}" if member else "")
            + f"; give --to {account.name}, or log in with another account"
        )
    return f"{known[owner.lower()]}/{name}"


class Proposal(NamedTuple):
    """What identifies an open pull request of an earlier run; `author` None: not logged in."""

    title: str
    author: str | None


def look(
    hub: Hub,
    writer: HubWriter,
    repository: str,
    branch: str | None,
    proposal: Proposal | None = None,
) -> Destination:
    """The repository as it is now, for a commit to `branch` (None: main) or a pull request.

    Raises:
        InputError: no repository for a pull request, or the Hub refuses.
        EnvironmentFault: the network or the Hub failed.
    """
    try:
        main = hub.listing(repository)
    except NotThereError:
        if proposal is not None:
            raise InputError(
                f"no repository {repository} to open a pull request in; publish without --pr"
            ) from None
        return Destination(repository, branch or MAIN, None, exists=branch in (None, MAIN))
    name = main.repository
    if proposal is not None:
        title, author = proposal
        branch = None if author is None else writer.proposal(name, title, author)
        if branch is None:
            return Destination(name, MAIN, main, opens=True)
    elif branch is None or branch == MAIN:
        return Destination(name, MAIN, main)
    elif branch not in writer.branches(name):
        return Destination(name, branch, main, exists=False)
    return Destination(name, branch, hub.listing(name, branch))
