"""Writing to the Hub: a repository, a branch, uploads that nobody sees yet, one commit.

huggingface_hub uploads and commits. Large files are uploaded first, each known by its hash: what is
on the Hub is not sent again, whichever run sent it. They become visible with the commit.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.threads import run_all
from quantkit.hub.connection import Connection, ignore, session
from quantkit.hub.errors import Purpose, no_write_token
from quantkit.hub.reading import commit_of

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import CommitOperationAdd

LARGE_BYTES = 32 << 20
"""Smaller files are held in memory as they were checked."""
UPLOADED_FIRST_BYTES = 1 << 20
"""From here on files are uploaded one by one before the commit: a killed run leaves one unfinished
at most. Smaller ones go with the commit."""
SILENCE_S = 300.0
"""Longest silence of the Hub; it takes a minute for a commit of very many files."""
MOST_PROPOSALS = 1000
"""Of one account, the newest: a list of them may have no end."""
_Answer = TypeVar("_Answer")


@dataclass(frozen=True)
class Account:
    """The account that a token belongs to.

    Attributes:
        reads_only: whether the token is known not to have write access.
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


@dataclass
class Upload:
    """Files on their way into one commit to `revision`, or a pull request to it.

    Attributes:
        on_wait: gets a sentence with the reason and the length of each wait.
    """

    connection: Connection
    repository: str
    revision: str
    propose: bool
    on_wait: Callable[[str], None] = ignore

    def __post_init__(self) -> None:
        self._asked = self.connection.asked(self.repository, self.revision, purpose="publish")
        self._added: list[CommitOperationAdd] = []

    def send(self, files: Sequence[LocalFile]) -> None:
        """Upload the large ones of `files` as far as they are not on the Hub.

        Raises:
            InputError: access is refused, or there is no room.
            EnvironmentFault: the network or the Hub failed, or a file changed meanwhile.
        """
        self._check_storage()
        for file in files:
            if file.size_bytes < UPLOADED_FIRST_BYTES:
                self._added.append(_addition(file))
            else:
                # in a thread that ctrl-C does not wait for
                run_all(self._send, [file], 1, threading.Event())

    def _check_storage(self) -> None:
        """Ask for access to Xet storage where huggingface_hub uses it.

        The errors of hf_xet do not say what the Hub answered; this request's do.
        """
        if not _uses_xet():
            return
        from huggingface_hub import hf_raise_for_status

        address = (
            f"{self.connection.endpoint}/api/models/{self.repository}/xet-write-token/"
            f"{quote(self.revision, safe='')}" + ("?create_pr=1" if self.propose else "")
        )
        self.connection.call(
            self._asked,
            lambda: hf_raise_for_status(session().get(address, headers=self.connection.headers)),
            self.on_wait,
        )

    def _send(self, file: LocalFile) -> None:
        added = _addition(file)
        api = self.connection.api()
        self.connection.call(
            self._asked,
            lambda: api.preupload_lfs_files(
                self.repository, [added], revision=self.revision, create_pr=self.propose
            ),
            self.on_wait,
        )
        # of what was really sent: hf_xet hashes while it reads
        if added.upload_info.is_hashed and added.upload_info.sha256.hex() != file.sha256:
            raise file.changed()
        self._added.append(added)

    def commit(self, removed: Sequence[str], parent: str, title: str, text: str) -> Committed:
        """Make everything visible at once.

        Args:
            removed: names of files that the commit removes.
            parent: the commit that it follows.

        Raises:
            ConflictError: the repository has another head than `parent` by now.
            InputError: access is refused, or there is no room.
            EnvironmentFault: the network or the Hub failed; the commit may have been made.
        """
        from huggingface_hub import CommitOperationDelete

        deleted = [CommitOperationDelete(name, is_folder=False) for name in removed]
        api = self.connection.api()
        made = self.connection.call(
            self._asked,
            lambda: api.create_commit(
                self.repository,
                [*self._added, *deleted],
                commit_message=title,
                commit_description=text,
                revision=self.revision,
                create_pr=self.propose,
                parent_commit=parent,
            ),
            delays_s=(),
        )
        return Committed(
            commit_of(made.oid, self._asked), made.pr_revision if self.propose else None
        )


class HubWriter:
    """Changes repositories on the Hub, with the token of `connection`.

    The methods raise InputError where the account may not, or has no room, and EnvironmentFault
    where the network or the Hub failed.

    Args:
        bars: let huggingface_hub draw the progress of uploads.
    """

    def __init__(self, connection: Connection, *, bars: bool = False) -> None:
        from huggingface_hub import set_client_factory
        from huggingface_hub.utils import disable_progress_bars, enable_progress_bars

        (enable_progress_bars if bars else disable_progress_bars)()
        set_client_factory(_client)
        self._connection, self._api = connection, connection.api()

    def _call(
        self,
        repository: str,
        act: Callable[[], _Answer],
        purpose: Purpose = "look up",
        revision: str | None = None,
    ) -> _Answer:
        return self._connection.call(
            self._connection.asked(repository, revision, purpose=purpose), act
        )

    def account(self) -> Account:
        """The account that the token belongs to."""
        endpoint = self._connection.endpoint
        if not self._connection.token:
            raise no_write_token(endpoint)
        found = self._call("your account", self._api.whoami)
        try:
            organizations = tuple(str(one["name"]) for one in found.get("orgs") or ())
            role = ((found.get("auth") or {}).get("accessToken") or {}).get("role")
            return Account(str(found["name"]), organizations, role == "read")
        except (KeyError, TypeError, AttributeError):
            raise EnvironmentFault(
                f"{endpoint} does not say which account the token belongs to; check HF_ENDPOINT"
            ) from None

    def create(self, repository: str, *, private: bool) -> None:
        """Create `repository` if it does not exist."""
        create = self._api.create_repo
        self._call(
            repository, lambda: create(repository, private=private, exist_ok=True), "publish"
        )

    def create_branch(self, repository: str, branch: str) -> None:
        """Create `branch` from `main` if it does not exist."""
        create = self._api.create_branch
        self._call(
            repository, lambda: create(repository, branch=branch, exist_ok=True), "publish", branch
        )

    def branches(self, repository: str) -> tuple[str, ...]:
        """Names of all branches."""
        refs = self._call(repository, lambda: self._api.list_repo_refs(repository))
        return tuple(str(ref.name) for ref in refs.branches)

    def proposal(self, repository: str, title: str, author: str) -> str | None:
        """The revision of the newest open pull request with this title by `author`; or None."""

        def ask() -> list[int]:
            found = self._api.get_repo_discussions(
                repository,
                author=author,
                discussion_type="pull_request",
                discussion_status="open",
            )
            some = itertools.islice(found, MOST_PROPOSALS)
            return [int(one.num) for one in some if one.title == title]

        numbers = self._call(repository, ask)
        return f"refs/pr/{max(numbers)}" if numbers else None

    def check_card(self, repository: str, text: str) -> None:
        """Ask the Hub whether it accepts the metadata of a README.md, before hours of upload.

        Raises:
            InputError: it does not; with the Hub's reasons.
        """
        from huggingface_hub import hf_raise_for_status

        def ask() -> list[str]:
            answer = session().post(
                f"{self._connection.endpoint}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=self._connection.headers,
            )
            if answer.status_code != 400:
                hf_raise_for_status(answer)
                return []
            errors = answer.json().get("errors") or [{"message": "it gives no reason"}]
            return [str(one.get("message")) for one in errors]

        refused = self._call(repository, ask)
        if refused:
            reasons = self._connection.without_token("; ".join(refused))
            raise InputError(
                f"the Hub does not accept the card's metadata: {reasons}; they come from the "
                "source's own card: name another source with --base-model, or mend its card"
            )


def _client() -> httpx2.Client:
    """A session for huggingface_hub with a timeout; its own waits for ever."""
    import httpx2
    from huggingface_hub import is_offline_mode
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse_offline(request: httpx2.Request) -> None:
        if is_offline_mode():
            raise OfflineModeIsEnabled(f"{request.url} is not reached in offline mode")

    hooks = {"request": [refuse_offline]}
    return httpx2.Client(event_hooks=hooks, follow_redirects=True, timeout=SILENCE_S)


def _uses_xet() -> bool:
    from huggingface_hub import constants
    from huggingface_hub.utils import is_package_available

    return not constants.HF_HUB_DISABLE_XET and is_package_available("hf_xet")


def _addition(file: LocalFile) -> CommitOperationAdd:
    """The client's operation for `file`.

    A small file is its bytes as they were checked. A large one is read as it is sent: LFS storage
    compares it with the hash given here; hf_xet computes a hash of its own, which is compared.
    """
    from huggingface_hub import CommitOperationAdd

    if file.size_bytes < LARGE_BYTES:
        return CommitOperationAdd(file.name, file.content())
    if not file.path.is_file() or file.path.stat().st_size != file.size_bytes:
        raise file.changed()
    added = CommitOperationAdd(file.name, file.path)
    if not _uses_xet():
        added.upload_info.sha256 = bytes.fromhex(file.sha256)
    return added
