"""Writing to the Hub: a repository, a branch, uploads that nobody sees yet, one commit.

Large files are uploaded first, each known by its hash: what is there is not sent again, whichever
run sent it. They become visible with the commit that names them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from quantkit.core.errors import EnvironmentFault, InputError, QuantkitError
from quantkit.core.threads import run_all
from quantkit.hub.connection import Connection, ignore
from quantkit.hub.errors import Asked, Purpose, no_write_token, refused_card

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
    """A file to be published: its name there, and its bytes here, as they were when it was checked.

    Attributes:
        blob_id: git's object id of the same bytes; None of a large file, which git never holds.
    """

    name: str
    path: Path
    size_bytes: int
    sha256: str
    blob_id: str | None = None

    def content(self) -> bytes:
        """The bytes that were checked.

        Raises:
            EnvironmentFault: the file has others by now.
        """
        content = self.path.read_bytes()
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise self.changed()
        return content

    def changed(self) -> EnvironmentFault:
        return EnvironmentFault(f"{self.path} changed while it was published; run again")


def local_file(name: str, path: Path, size_bytes: int, sha256: str) -> LocalFile:
    """A file whose SHA-256 is known; a small one is read, and must have it.

    Raises:
        EnvironmentFault: it has another.
        OSError: it cannot be read.
    """
    file = LocalFile(name, path, size_bytes, sha256)
    if size_bytes >= LARGE_BYTES:
        return file
    content = file.content()
    blob = hashlib.sha1(b"blob %d\0" % len(content), usedforsecurity=False)
    blob.update(content)
    return dataclasses.replace(file, blob_id=blob.hexdigest())


@dataclass(frozen=True)
class Committed:
    """A commit that was made.

    Attributes:
        proposal: the revision of the pull request that it opened, such as refs/pr/3.
    """

    commit: str
    proposal: str | None


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
        self._check_storage()
        small = [file for file in files if file.size_bytes < LARGE_BYTES]
        large = [[file] for file in files if file.size_bytes >= LARGE_BYTES]
        stop = threading.Event()
        for batch in (small, *large):
            if batch:
                # in a thread of its own: the client's threads do not end on ctrl-C
                run_all(lambda files: self._send(files, on_bytes, stop), [batch], 1, stop)
                stop.clear()

    def _check_storage(self) -> None:
        """Ask for access to the Hub's newer storage, where the client uses it.

        Its own errors do not say what the Hub answered; this request's do.
        """
        from huggingface_hub.utils._runtime import is_xet_available

        if not is_xet_available():
            return
        from huggingface_hub import get_session, hf_raise_for_status
        from huggingface_hub.utils._xet import XetTokenType, xet_connection_info_refresh_url

        address = xet_connection_info_refresh_url(
            token_type=XetTokenType.WRITE,
            repo_id=self._repository,
            repo_type="model",
            revision=self._revision,
            endpoint=self._connection.endpoint,
        )
        params = {"create_pr": "1"} if self._propose else {}
        self._trying(
            lambda: hf_raise_for_status(
                get_session().get(address, headers=self._connection.headers, params=params)
            )
        )

    def _send(
        self, files: Sequence[LocalFile], on_bytes: Callable[[int], None], stop: threading.Event
    ) -> None:
        counted = [_Counted(file.size_bytes, on_bytes, stop) for file in files]
        added = [_addition(file, count) for file, count in zip(files, counted, strict=True)]
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
        for file, count, addition in zip(files, counted, added, strict=True):
            # what was really sent; with Xet the client hashes on its way
            if addition.upload_info.is_hashed and addition.upload_info.sha256.hex() != file.sha256:
                raise file.changed()
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
        return Committed(made.oid, made.pr_revision if self._propose else None)

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
        with _explained(connection, "your account", None, "look up"):
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
        with _explained(self._connection, repository, None, "look up"):
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

        with _explained(self._connection, repository, None, "look up"):
            found = _trying(self._connection, look, ignore)
        numbers = [one.num for one in found if one.title == title]
        return f"refs/pr/{max(numbers)}" if numbers else None

    def check_card(self, repository: str, text: str) -> None:
        """Ask the Hub whether it takes the metadata of a README.md, before hours of upload.

        Raises:
            InputError: it does not; says what it said.
            EnvironmentFault: the network or the Hub failed.
        """
        from huggingface_hub import get_session, hf_raise_for_status

        def ask() -> list[str]:
            answer = get_session().post(
                f"{self._connection.endpoint}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=self._connection.headers,
            )
            if answer.status_code != 400:
                hf_raise_for_status(answer)
                return []
            errors = answer.json().get("errors") or [{"message": "it gives no reason"}]
            return [str(one.get("message")) for one in errors]

        with _explained(self._connection, repository, None, "look up"):
            refused = _trying(self._connection, ask, ignore)
        if refused:
            raise refused_card(self._connection.without_token("; ".join(refused)))

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
def _explained(
    connection: Connection,
    repository: str,
    revision: str | None,
    purpose: Purpose = "publish",
) -> Iterator[None]:
    """Turn the client's errors into ours, those of writing among them."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    asked = Asked(connection.endpoint, repository, revision, connection.has_token, purpose=purpose)
    with connection.explained(asked):
        try:
            yield
        except HFValidationError as error:
            raise InputError(
                f"{repository!r} is no name of a repository; give OWNER/NAME "
                f"({connection.words(error)})"
            ) from None
        except HfHubHTTPError:
            raise  # some are a ValueError as well
        except (RuntimeError, ValueError, KeyError) as error:
            cause = error.__cause__
            if isinstance(cause, httpx2.HTTPError | OSError | QuantkitError):
                raise cause from None
            raise EnvironmentFault(
                f"{connection.endpoint} answers a change to {repository} with something that is "
                f"not understood ({connection.words(error)}); check HF_ENDPOINT, then run again"
            ) from None


class StoppedError(Exception):
    """The person stopped the run."""


class _Counted:
    """Counts how far a file was sent; a part that is sent twice counts once."""

    def __init__(
        self, size_bytes: int, on_bytes: Callable[[int], None], stop: threading.Event
    ) -> None:
        self.size_bytes, self._on_bytes, self._stop = size_bytes, on_bytes, stop
        self._farthest = 0

    def reached(self, position: int) -> None:
        if self._stop.is_set():
            raise StoppedError
        if position > self._farthest:
            self._on_bytes(position - self._farthest)
            self._farthest = position


def _addition(file: LocalFile, count: _Counted) -> CommitOperationAdd:
    """The client's operation for `file`, which tells how far it was read.

    A small file is its bytes as they were checked. A large one is read as it is sent: the plain
    storage compares it with the hash that is known; for the other the client makes a hash of its
    own, which is compared.
    """
    from huggingface_hub import CommitOperationAdd
    from huggingface_hub.utils._runtime import is_xet_available

    class Watched(io.BufferedReader):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            count.reached(self.tell())
            return data

    class WatchedBytes(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(size)
            count.reached(self.tell())
            return data

    class Addition(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[Any]:
            if isinstance(self.path_or_fileobj, bytes):
                yield WatchedBytes(self.path_or_fileobj)
                return
            with Watched(io.FileIO(file.path)) as opened:
                if os.fstat(opened.fileno()).st_size != file.size_bytes:
                    raise file.changed()
                yield opened

    is_small = file.size_bytes < LARGE_BYTES
    added = Addition(file.name, file.content() if is_small else file.path)
    if not is_small and not is_xet_available():
        added.upload_info.sha256 = bytes.fromhex(file.sha256)
    return added
