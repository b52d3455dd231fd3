"""A small real hub on loopback, which answers as the Hub does and can be told to misbehave.

Two servers, as on the Hub: one for the API and small files, and one for large files, to which the
first redirects, and which refuses an access token as signed addresses do. Files are served from
disk, in pieces.

With `storage` it can be written to as well, through huggingface_hub with HF_HUB_DISABLE_XET, or by
the test itself with `write`.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from loopback_reading import Reading, Served
from loopback_requests import Account, Fault
from loopback_store import ATTRIBUTES, Change, Commit, Repository, hashes, is_large
from loopback_writing import Writing
from serving import serving

__all__ = ["COMMIT", "GOOD_TOKEN", "READ_TOKEN", "Account", "Fault", "LoopbackHub", "commit_of",
           "hashes", "hub"]  # fmt: skip

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GOOD_TOKEN = "hf_good"
READ_TOKEN = "hf_read"


def _accounts() -> dict[str, Account]:
    return {
        GOOD_TOKEN: Account("someone", orgs={"lab": "write", "readers": "read"}),
        READ_TOKEN: Account("someone", role="read"),
    }


@dataclass
class LoopbackHub:
    """What is served, and how.

    Attributes:
        repos: OWNER/NAME → revision or commit → folder; the revision "main" is asked for by
            default, and has the commit COMMIT. Datasets are datasets/OWNER/NAME.
        cards: repository → the metadata of its card.
        gated: repositories whose files nobody may read.
        private: repositories that only their owner's accounts see.
        faults: file name → what goes wrong with its next answers, one after another.
        always: file name → what goes wrong with each of its answers.
        api_faults: what goes wrong with the next answers of the API; a number is a status.
        echo_token: the refusals of the API repeat the token that came.
        claims: file name → size in the record, instead of its own.
        bytes_per_second: of each answer; None for all that the machine can do.
        storage: a folder for what is written; None: nothing can be.
        written: OWNER/NAME → what can be written to.
        accounts: token → whose it is.
        gates: repository → "auto" or "manual", which its record says of it.
        part_bytes: large files beyond this size arrive in parts of it; None: in one.
        upload_bytes_per_second: of each body that arrives.
        upload_faults: method and a regular expression of the address, query included → what goes
            wrong with the next such requests, one after another; a number is a status.
        received: SHA-256 of a large file → bytes of it that arrived.
        commits_made: how many were, through the API.
        requests: all of them, as "METHOD ADDRESS".
        asked: how often the API was.
        served: every answer with a file, in order of beginning.
        together: most answers under way at a time.
    """

    repos: dict[str, dict[str, Path]]
    cards: dict[str, object] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    private: set[str] = field(default_factory=set)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    api_faults: list[int | Fault] = field(default_factory=list)
    echo_token: bool = False
    claims: dict[str, int] = field(default_factory=dict)
    bytes_per_second: float | None = None
    storage: Path | None = None
    written: dict[str, Repository] = field(default_factory=dict)
    accounts: dict[str, Account] = field(default_factory=_accounts)
    gates: dict[str, str] = field(default_factory=dict)
    part_bytes: int | None = None
    upload_bytes_per_second: float | None = None
    upload_faults: dict[tuple[str, str], list[int | Fault]] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)
    commits_made: int = 0
    requests: list[str] = field(default_factory=list)
    asked: int = 0
    served: list[Served] = field(default_factory=list)
    together: int = 0
    address: str = ""
    large_address: str = ""
    closing: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    under_way: int = 0

    def sent_bytes(self, name: str | None = None) -> int:
        """Bytes sent of one file, or of all."""
        return sum(s.sent_bytes for s in self.served if name in (None, s.name))

    def names(self) -> list[str]:
        """Names of the files served."""
        return [served.name for served in self.served]

    def repository(self, name: str) -> Repository:
        """A repository's branches, commits and pull requests."""
        if name in self.written:
            return self.written[name]
        only_read = Repository(Path())
        for revision, folder in self.repos[name].items():
            only_read.adopt(revision, Commit(commit_of(revision), folder))
        return only_read

    def create(self, name: str) -> None:
        """A new repository with its first commit."""
        assert self.storage is not None
        repository = Repository(self.storage / name)
        repository.commit("main", [Change(".gitattributes", ATTRIBUTES.encode())], "initial commit")
        self.written[name] = repository

    def commit(self, name: str, revision: str = "main") -> Commit | None:
        """A revision's commit: its id, its folder with all files, what came before it."""
        return self.repository(name).revision(revision)

    def write(
        self,
        name: str,
        files: Mapping[str, bytes | None],
        title: str = "somebody else's",
        ref: str = "main",
        author: str = "somebody-else",
    ) -> str:
        """Commit `files` (None: gone) without a request, to a new repository where there is none.

        Returns:
            The commit.
        """
        if name not in self.written:
            self.create(name)
        repository, changes = self.written[name], []
        for path, content in files.items():
            if content is not None and is_large(path):
                oid = hashlib.sha256(content).hexdigest()
                arrived = repository.incoming(oid)
                arrived.write_bytes(content)
                repository.keep(arrived, oid)
                changes.append(Change(path, oid=oid))
            else:
                changes.append(Change(path, content))
        return repository.commit(ref, changes, title, author=author).id

    def spelled(self, name: str) -> str:
        """A repository's name as it was made: the Hub takes capitals for small letters; or ""."""
        there = [*self.repos, *self.written]
        return next((known for known in there if known.lower() == name.lower()), "")

    def next_fault(self, name: str) -> Fault:
        """What goes wrong with the next answer with a file."""
        with self.lock:
            if self.faults.get(name):
                return self.faults[name].pop(0)
        return self.always.get(name, Fault())

    def next_upload_fault(self, method: str, address: str) -> Fault:
        """What goes wrong with this request."""
        with self.lock:
            self.requests.append(f"{method} {address}")
            for (wanted, pattern), faults in self.upload_faults.items():
                if faults and wanted == method and re.search(pattern, address):
                    fault = faults.pop(0)
                    return Fault(fault) if isinstance(fault, int) else fault
        return Fault()


def commit_of(revision: str) -> str:
    """The commit of a revision: commits are their own, `main` is COMMIT."""
    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    return COMMIT if revision == "main" else hashlib.sha1(revision.encode()).hexdigest()


@contextmanager
def hub(
    repos: Mapping[str, Path | dict[str, Path]],
    storage: Path | None = None,
    **settings: object,
) -> Iterator[LoopbackHub]:
    """Serve `repos` (OWNER/NAME → folder, or revision → folder); see LoopbackHub for `settings`.

    Args:
        storage: a folder for what is written, which makes `repos` writable as well; their own
            folders stay as they are.
    """
    named = {n: f if isinstance(f, dict) else {"main": f} for n, f in repos.items()}
    served = LoopbackHub(named, storage=storage, **settings)  # type: ignore[arg-type]
    if storage is not None:
        for name in named:
            served.written[name] = served.repository(name)
            served.written[name].folder = storage / name
    handler = type("Handler", (Reading, Writing), {"hub": served})
    with serving(handler) as served.address, serving(handler) as served.large_address:
        try:
            yield served
        finally:
            served.closing.set()
