"""Writing to the Hub: a repository, a branch, uploads that nobody sees yet, one commit.

Large files are uploaded first, each known by its hash: what is there is not sent again, whichever
run sent it. They become visible with the commit that names them.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quantkit.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.hub.connection import Connection, ignore
from quantkit.hub.errors import Asked, no_write_token

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import CommitOperationAdd

LARGE_BYTES = 32 << 20
"""From here on files are uploaded one by one: a killed run leaves one unfinished at most."""
SILENCE_S = 300.0
"""Longest silence of the Hub; it takes a minute for a commit of very many files."""
_WRITE_ATTEMPTS = 5
_Answer = TypeVar("_Answer")


class ConflictError(EnvironmentFault):
    """Somebody else committed since the repository was looked at."""


@dataclass(frozen=True)
class Account:
    """Whose token it is.

    Attributes:
        organizations: that the account belongs to.
        reads_only: whether the token is known not to write.
    """

    name: str
    organizations: tuple[str, ...]
    reads_only: bool


@dataclass(frozen=True)
class LocalFile:
    """A file to be published: its name there, and its bytes here."""

    name: str
    path: Path
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Committed:
    """A commit that was made.

    Attributes:
        proposal: the revision of the pull request that it opened, such as refs/pr/3.
        address: of the commit or the pull request, for people.
    """

    commit: str
    proposal: str | None
    address: str


class Upload:
    """Files on their way into one commit."""

    def __init__(
        self,
        connection: Connection,
        repository: str,
        revision: str,
        *,
        propose: bool,
        on_wait: Callable[[str], None] = ignore,
    ) -> None:
        self._connection, self._repository, self._revision = connection, repository, revision
        self._propose, self._on_wait = propose, on_wait
        self._added: list[CommitOperationAdd] = []

    def send(self, files: Sequence[LocalFile], on_bytes: Callable[[int], None]) -> None:
        """Upload the content of `files` as far as it is not there; small files wait for the commit.

        Args:
            on_bytes: told of bytes; those that were there already count.

        Raises:
            InputError: access is refused, or there is no room.
            EnvironmentFault: the network or the Hub failed, or a file changed meanwhile.
        """
        small = [file for file in files if file.size_bytes < LARGE_BYTES]
        large = [[file] for file in files if file.size_bytes >= LARGE_BYTES]
        for batch in (small, *large):
            if batch:
                self._send(batch, on_bytes)

    def _send(self, files: Sequence[LocalFile], on_bytes: Callable[[int], None]) -> None:
        counted = [_Counted(file.size_bytes, on_bytes) for file in files]
        added = [_addition(file, count.reached) for file, count in zip(files, counted, strict=True)]
        api = self._connection.api()
        self._trying(
            lambda: api.preupload_lfs_files(
                self._repository,
                added,
                revision=self._revision,
                create_pr=self._propose,
                free_memory=False,
            )
        )
        for count in counted:
            count.reached(count.size_bytes)
        self._added += added

    def commit(self, removed: Sequence[str], parent: str, title: str, text: str) -> Committed:
        """Make everything visible at once.

        Args:
            removed: names of files that the commit takes away.
            parent: the commit that it follows.

        Raises:
            ConflictError: the repository has another head than `parent` by now.
            InputError: access is refused, or there is no room.
            EnvironmentFault: the network or the Hub failed; the commit may have been made.
        """
        from huggingface_hub import CommitOperationDelete
        from huggingface_hub.errors import HfHubHTTPError

        deleted = [CommitOperationDelete(name, is_folder=False) for name in removed]
        api = self._connection.api()
        with self._explained():
            try:
                made = api.create_commit(
                    self._repository,
                    [*self._added, *deleted],
                    commit_message=title,
                    commit_description=text,
                    revision=self._revision,
                    create_pr=self._propose,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code == 412:
                    raise ConflictError(
                        f"somebody committed to {self._repository} while it was published to; run "
                        "again to see what has changed: what was uploaded is kept"
                    ) from None
                raise
        proposal = made.pr_revision if self._propose else None
        address = (made.pr_url if self._propose else None) or made.commit_url
        return Committed(made.oid, proposal, str(address))

    def _trying(self, act: Callable[[], None]) -> None:
        with self._explained():
            _trying(self._connection, act, self._on_wait)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with _explained(self._connection, self._repository, self._revision):
            yield


class HubWriter:
    """Changes repositories on the Hub; the token is that of `connection`."""

    def __init__(self, connection: Connection) -> None:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils.tqdm import disable_progress_bars

        disable_progress_bars()  # they would run into ours
        set_client_factory(_client)
        self._connection = connection

    def account(self) -> Account:
        """Whose token it is.

        Raises:
            InputError: there is none, or the Hub refuses it.
            EnvironmentFault: the network or the Hub failed.
        """
        connection = self._connection
        if not connection.has_token:
            raise no_write_token(connection.endpoint)
        with _explained(connection, "your account", None):
            found = _trying(connection, lambda: connection.api().whoami(), ignore)
        try:
            organizations = tuple(str(one["name"]) for one in found.get("orgs") or ())
            role = ((found.get("auth") or {}).get("accessToken") or {}).get("role")
            return Account(str(found["name"]), organizations, role == "read")
        except (KeyError, TypeError, AttributeError):
            raise EnvironmentFault(
                f"{connection.endpoint} does not say whose token it is; check HF_ENDPOINT"
            ) from None

    def create(self, repository: str, *, private: bool) -> None:
        """Make `repository`; nothing where it exists.

        Raises:
            InputError: the account may not, or has no room.
            EnvironmentFault: the network or the Hub failed.
        """
        api = self._connection.api()
        with _explained(self._connection, repository, None):
            _trying(
                self._connection,
                lambda: api.create_repo(repository, private=private, exist_ok=True),
                ignore,
            )

    def create_branch(self, repository: str, branch: str) -> None:
        """Make `branch` from `main`; nothing where it exists."""
        api = self._connection.api()
        with _explained(self._connection, repository, branch):
            _trying(
                self._connection,
                lambda: api.create_branch(repository, branch=branch, exist_ok=True),
                ignore,
            )

    def branches(self, repository: str) -> tuple[str, ...]:
        """Names of all branches."""
        api = self._connection.api()
        with _explained(self._connection, repository, None):
            found = _trying(self._connection, lambda: api.list_repo_refs(repository), ignore)
        return tuple(ref.name for ref in found.branches)

    def proposal(self, repository: str, title: str, author: str) -> str | None:
        """The revision of the newest open pull request with this title by `author`; or None."""
        api = self._connection.api()

        def look() -> list[Any]:
            return list(
                api.get_repo_discussions(
                    repository,
                    author=author,
                    discussion_type="pull_request",
                    discussion_status="open",
                )
            )

        with _explained(self._connection, repository, None):
            found = _trying(self._connection, look, ignore)
        numbers = [one.num for one in found if one.title == title]
        return f"refs/pr/{max(numbers)}" if numbers else None

    def upload(
        self,
        repository: str,
        revision: str,
        *,
        propose: bool,
        on_wait: Callable[[str], None] = ignore,
    ) -> Upload:
        """Begin what will be one commit to `revision`, or a pull request to it.

        Args:
            on_wait: told, in a sentence, why and for how long is waited before another attempt.
        """
        return Upload(self._connection, repository, revision, propose=propose, on_wait=on_wait)


def _client() -> httpx2.Client:
    """The client's own session, which by default waits for ever."""
    from huggingface_hub.utils._http import default_client_factory

    session = default_client_factory()
    session.timeout = SILENCE_S
    return session


def _trying(
    connection: Connection, act: Callable[[], _Answer], on_wait: Callable[[str], None]
) -> _Answer:
    """`act()`, again after waits where a fault may pass."""
    import httpx2

    for delay_s in (*connection.delays_s[: _WRITE_ATTEMPTS - 1], None):
        try:
            return act()
        except RuntimeError as error:  # the client's wrapping of what an upload ended with
            cause = error.__cause__
            if not isinstance(cause, httpx2.HTTPError | OSError):
                raise
            connection.wait(cause, delay_s, on_wait)
        except (httpx2.HTTPError, OSError) as error:
            connection.wait(error, delay_s, on_wait)
    raise AssertionError("unreachable")


@contextmanager
def _explained(connection: Connection, repository: str, revision: str | None) -> Iterator[None]:
    """Turn the client's errors into ours, those of writing among them."""
    import httpx2
    from huggingface_hub.errors import HFValidationError

    asked = Asked(connection.endpoint, repository, revision, connection.has_token, writes=True)
    with connection.explained(asked):
        try:
            yield
        except HFValidationError as error:
            raise InputError(
                f"{repository!r} is no name of a repository; give OWNER/NAME "
                f"({connection.words(error)})"
            ) from None
        except (RuntimeError, ValueError, KeyError) as error:
            cause = error.__cause__
            if isinstance(cause, httpx2.HTTPError | OSError | QuantkitError):
                raise cause from None
            raise EnvironmentFault(
                f"{connection.endpoint} answers a change to {repository} with something that is "
                f"not understood ({connection.words(error)}); check HF_ENDPOINT, then run again"
            ) from None


class _Counted:
    """Counts how far a file was sent; a part that is sent twice counts once."""

    def __init__(self, size_bytes: int, on_bytes: Callable[[int], None]) -> None:
        self.size_bytes, self._on_bytes, self._farthest = size_bytes, on_bytes, 0

    def reached(self, position: int) -> None:
        if position > self._farthest:
            self._on_bytes(position - self._farthest)
            self._farthest = position


def _addition(file: LocalFile, on_position: Callable[[int], None]) -> CommitOperationAdd:
    """The client's operation for `file`; it tells how far it was read, and hashes nothing again."""
    from huggingface_hub import CommitOperationAdd

    class Watched(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            on_position(self.tell())
            return data

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            with Watched(io.FileIO(file.path)) as opened:
                if os.fstat(opened.fileno()).st_size != file.size_bytes:
                    raise EnvironmentFault(f"{file.path} changed while it was published; run again")
                yield opened

    added = Addition(path_in_repo=file.name, path_or_fileobj=file.path)
    # known already; the Hub checks what it gets against it
    added.upload_info.sha256 = bytes.fromhex(file.sha256)
    return added
