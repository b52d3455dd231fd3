"""How the loopback hub is written to, as huggingface_hub does it without Xet.

Large files go to the second server first, in one piece or in several, and are named by the commit
that comes after. Small ones come with it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

from loopback_listings import API, REPO, Listings, checked
from loopback_requests import Account
from loopback_store import Change, Commit, Refused, attributed, is_large

LARGE_BYTES = 10 << 20
_OBJECT = re.compile(rf"^/lfs/{REPO}/(?P<oid>[0-9a-f]{{64}})(?:/(?P<upload>\w+)/(?P<part>\d+))?$")
_REVISION = "(?P<revision>[^/]+)$"
_MAY_NOT = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
_READ_TOKEN = "Forbidden: you must use a write token to upload to a repository."
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}")


class Uploads(Listings):
    """POST and PUT."""

    def do_POST(self) -> None:
        self.guarded(self._post)

    def do_PUT(self) -> None:
        self.guarded(self._put)

    def _post(self) -> None:
        if self.route == "/api/repos/create":
            self._create()
            return
        if self.route == "/api/validate-yaml":
            self._validate()
            return
        works: tuple[tuple[str, Callable[[str, re.Match[str]], None]], ...] = (
            (rf"^/api/complete_multipart/{REPO}/(?P<oid>\w+)/(?P<upload>\w+)$", self._complete),
            (rf"^/{REPO}\.git/info/lfs/objects/batch$", self._batch),
            (rf"{API}/branch/(?P<branch>[^/]+)$", self._branch),
            (rf"{API}/preupload/{_REVISION}", self._preupload),
            (rf"{API}/commit/{_REVISION}", self._commit),
        )
        for pattern, work in works:
            if match := re.match(pattern, self.route):
                if work == self._complete:  # a signed address, as those of the large files
                    self._without_token()
                    work(match["repo"], match)
                else:
                    work(self.visible(match), match)
                return
        raise Refused(404, f"Sorry, we can't find {self.route}")

    def _create(self) -> None:
        account, wanted = self.account(), self.json()
        owner, name = wanted.get("organization") or account.name, wanted["name"]
        kind = wanted.get("type") or "model"
        repo = f"{'datasets/' if kind == 'dataset' else ''}{owner}/{name}"
        if not account.may_write(repo):
            raise Refused(
                403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'
            )
        if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
            raise Refused(400, f"Invalid repo name: {name}")
        existing, content = self.spelled(repo), {"url": f"{self.hub.address}/{repo}"}
        if existing:
            words = f"You already created this {kind} repo: {owner}/{name}"
            content = {"error": words, "url": f"{self.hub.address}/{existing}"}
            self.answer(content, 409, {"X-Error-Message": words})
            return
        if self.hub.store is None:
            raise Refused(405, "This hub only reads: the test gave it no storage")
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.hub.store.create(repo)
        self.answer(content | {"name": f"{owner}/{name}"})

    def _validate(self) -> None:
        errors, warnings = checked(self.json()["content"])
        content = {
            "errors": [{"message": error} for error in errors],
            "warnings": [{"message": warning} for warning in warnings],
        }
        self.answer(content, 400 if errors else 200)

    def _branch(self, repo: str, match: re.Match[str]) -> None:
        self._may_write(repo)
        start = self.json().get("startingPoint", "main")
        self.repository(repo).branch(unquote(match["branch"]), start)
        self.answer({"success": True}, 201)

    def _preupload(self, repo: str, match: re.Match[str]) -> None:
        commit = self.commit_at(repo, match["revision"])
        self._may_write(repo, match["revision"], pull="create_pr" in self.query)
        files = [
            {
                "path": file["path"],
                "uploadMode": _mode(commit, file),
                "shouldIgnore": False,
                "oid": _oid(commit, file["path"]),
            }
            for file in self.json()["files"]
        ]
        self.answer({"files": files, "commitOid": commit.id})

    def _batch(self, repo: str, match: re.Match[str]) -> None:
        asked = self.json()
        self._may_write(repo, asked.get("ref", {}).get("name", "main"), "Authorization error.")
        repository, parts = self.repository(repo), self.hub.part_bytes
        multipart = parts is not None and "multipart" in asked["transfers"]
        objects = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size, "authenticated": True}
            if repository.object(oid) is None:
                upload: dict[str, object] = {"href": f"{self.hub.large_address}/lfs/{repo}/{oid}?x"}
                if multipart and parts is not None and size > parts:
                    upload = self._in_parts(repo, oid, size, parts)
                entry["actions"] = {"upload": upload}
            objects.append(entry)
        self.answer({"transfer": "multipart" if multipart else "basic", "objects": objects})

    def _in_parts(self, repo: str, oid: str, size: int, parts: int) -> dict[str, object]:
        upload = uuid.uuid4().hex
        place = f"{self.hub.large_address}/lfs/{repo}/{oid}/{upload}"
        count = -(-size // parts)
        header = {f"{n:05d}": f"{place}/{n}?signature=x" for n in range(1, count + 1)}
        complete = f"{self.hub.address}/api/complete_multipart/{repo}/{oid}/{upload}?signature=x"
        return {"href": complete, "header": header | {"chunk_size": str(parts)}}

    def _put(self) -> None:
        match = _OBJECT.match(self.route)
        if match is None:
            raise Refused(404, "NoSuchKey")
        self._without_token()
        repository, oid = self.repository(match["repo"]), match["oid"]
        arrived = repository.incoming(oid, uuid.uuid4().hex)
        md5 = hashlib.md5(usedforsecurity=False)
        try:
            with arrived.open("wb") as file:
                for piece in self.body:
                    file.write(piece)
                    md5.update(piece)
                    with self.hub.lock:
                        self.hub.received[oid] += len(piece)
            if match["part"]:
                arrived.replace(repository.incoming(oid, match["upload"], str(int(match["part"]))))
            else:
                repository.keep(arrived, oid)
        finally:
            arrived.unlink(missing_ok=True)
        self.answer(b"", headers={"ETag": f'"{md5.hexdigest()}"'})

    def _complete(self, repo: str, match: re.Match[str]) -> None:
        repository, asked = self.repository(repo), self.json()
        oid, upload = match["oid"], match["upload"]
        numbers = [part["partNumber"] for part in asked["parts"]]
        parts = [repository.incoming(oid, upload, str(number)) for number in numbers]
        whole = repository.incoming(oid, upload)
        if numbers != list(range(1, len(numbers) + 1)) or asked["oid"] != oid:
            raise Refused(400, "InvalidPartOrder")
        for part, path in zip(asked["parts"], parts, strict=True):
            if not path.is_file() or part["etag"] != f'"{_md5(path)}"':
                raise Refused(400, "InvalidPart")
        with whole.open("wb") as file:
            for path in parts:
                file.write(path.read_bytes())
                path.unlink()
        repository.keep(whole, oid)
        self.answer({"success": True})

    def _commit(self, repo: str, match: re.Match[str]) -> None:
        pull, ref = "create_pr" in self.query, unquote(match["revision"])
        account = self._may_write(repo, ref, pull=pull)
        lines = [json.loads(line) for line in b"".join(self.body).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes = [_change(line) for line in lines if line["key"] != "header"]
        repository, parent = self.repository(repo), header.get("parentCommit")
        words = (header["summary"], header.get("description", ""), account.name)
        with repository.lock:
            if pull:
                opened = repository.open(header["summary"], account.name, parent or ref)
                ref, parent = f"refs/pr/{opened.num}", None
            elif repository.revision(ref) is None or ref in repository.commits:
                raise Refused(404, f"Invalid rev id: {ref}", "RevisionNotFound")
            try:
                commit = repository.commit(ref, changes, *words, parent, self.fault.recorded)
            except Refused:
                if pull:
                    repository.discussions.popitem()
                raise
        with self.hub.lock:
            self.hub.commits_made += 1
        content = {"success": True, "commitOid": commit.id, "hookOutput": ""}
        content["commitUrl"] = f"{self.hub.address}/{repo}/commit/{commit.id}"
        if pull:
            num = ref.removeprefix("refs/pr/")
            content["pullRequestUrl"] = f"{self.hub.address}/{repo}/discussions/{num}"
        self.answer(content)

    def _may_write(
        self, repo: str, ref: str = "main", words: str = _MAY_NOT, pull: bool = False
    ) -> Account:
        """Who writes to a branch or opens a pull request.

        Raises:
            Refused: the token may not.
        """
        account = self.account()
        if account.role == "read":
            raise Refused(403, _READ_TOKEN)
        if pull or account.may_write(repo) or self._own_pull(repo, ref, account):
            return account
        raise Refused(403, words)

    def _own_pull(self, repo: str, ref: str, account: Account) -> bool:
        num = unquote(ref).removeprefix("refs/pr/")
        found = self.repository(repo).discussions.get(int(num)) if num.isdecimal() else None
        return found is not None and found.author == account.name

    def _without_token(self) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")


def _mode(commit: Commit, file: dict[str, object]) -> str:
    """Whether a file is to be stored with LFS, by its name, its first bytes and its size."""
    name, size = str(file["path"]), int(str(file["size"]))
    attributes = commit.folder / ".gitattributes"
    named = attributes.is_file() and attributed(attributes.read_text(), name)
    binary = b"\0" in base64.b64decode(str(file["sample"]))
    large = is_large(name) or named or binary or size > LARGE_BYTES
    return "lfs" if large else "regular"


def _oid(commit: Commit, name: str) -> str | None:
    """What a file is known by: SHA-256 of a large one, git object id of another."""
    if not (commit.folder / name).is_file():
        return None
    record = commit.record(name)
    lfs = record.get("lfs")
    return str(lfs["sha256"] if isinstance(lfs, dict) else record["blobId"])


def _change(line: dict[str, object]) -> Change:
    key, value = line["key"], line["value"]
    assert isinstance(value, dict)
    path = value["path"]
    if key == "file":
        return Change(path, content=base64.b64decode(value["content"]))
    if key == "lfsFile":
        return Change(path, oid=value["oid"])
    return Change(path, deleted=key == "deletedFile", deleted_folder=key == "deletedFolder")


def _md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
