"""How the loopback hub is written to, as huggingface_hub does it without Xet.

Large files go to the second server first, in one piece or in several, and are named by the commit
that comes after. Small ones come with it.
"""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from loopback_cards import checked
from loopback_requests import API, REPO, REVISION, Account, Requests, route
from loopback_store import Change, Commit, Refused, attributed, hashes, is_large

LARGE_BYTES = 10 << 20
_OID = "(?P<oid>[0-9a-f]{64})"
_MAY_NOT = "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
_READ_TOKEN = "Forbidden: you must use a write token to upload to a repository."


class Writing(Requests):
    """POST and PUT."""

    @route("POST", "/api/repos/create")
    def create(self) -> None:
        account, wanted = self.account(), self.json()
        owner, name = wanted.get("organization") or account.name, wanted["name"]
        kind = wanted.get("type") or "model"
        repo = f"{'datasets/' if kind == 'dataset' else ''}{owner}/{name}"
        if not account.may_write(repo):
            raise Refused(
                403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'
            )
        if existing := self.hub.spelled(repo):
            words = f"You already created this {kind} repo: {owner}/{name}"
            content = {"error": words, "url": f"{self.hub.address}/{existing}"}
            self.answer(content, 409, {"X-Error-Message": words})
            return
        if self.hub.storage is None:
            raise Refused(405, "This hub only reads: the test gave it no storage")
        if wanted.get("private") or wanted.get("visibility") == "private":
            self.hub.private.add(repo)
        self.hub.create(repo)
        self.answer({"url": f"{self.hub.address}/{repo}", "name": f"{owner}/{name}"})

    @route("POST", "/api/validate-yaml")
    def validate(self) -> None:
        errors, warnings = checked(self.json()["content"])
        content = {
            "errors": [{"message": error} for error in errors],
            "warnings": [{"message": warning} for warning in warnings],
        }
        self.answer(content, 400 if errors else 200)

    @route("POST", f"{API}/branch/(?P<branch>[^/]+)")
    def branch(self, repo: str, branch: str) -> None:
        self._may_write(repo)
        self.repository(repo).branch(branch, self.json().get("startingPoint", "main"))
        self.answer({"success": True}, 201)

    @route("POST", f"{API}/preupload/{REVISION}")
    def preupload(self, repo: str, revision: str) -> None:
        commit = self.commit_at(repo, revision)
        self._may_write(repo, revision, pull="create_pr" in self.query)
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

    @route("POST", rf"/{REPO}\.git/info/lfs/objects/batch")
    def batch(self, repo: str) -> None:
        asked = self.json()
        self._may_write(repo, asked.get("ref", {}).get("name", "main"), "Authorization error.")
        parts = self.hub.part_bytes if "multipart" in asked["transfers"] else None
        objects = []
        for wanted in asked["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            entry = {"oid": oid, "size": size, "authenticated": True}
            if self.repository(repo).object(oid) is None:
                place = f"{self.hub.large_address}/lfs/{repo}/{oid}"
                upload: dict[str, Any] = {"href": f"{place}?signature=x"}
                if parts is not None and size > parts:
                    number = uuid.uuid4().hex
                    complete = f"{self.hub.address}/api/complete_multipart/{repo}/{oid}/{number}"
                    header = {
                        f"{n:05d}": f"{place}/{number}/{n}?signature=x"
                        for n in range(1, -(-size // parts) + 1)
                    }
                    upload = {"href": complete, "header": header | {"chunk_size": str(parts)}}
                entry["actions"] = {"upload": upload}
            objects.append(entry)
        transfer = "basic" if parts is None else "multipart"
        self.answer({"transfer": transfer, "objects": objects})

    @route("PUT", rf"/lfs/{REPO}/{_OID}(?:/(?P<upload>\w+)/(?P<part>\d+))?")
    def put(self, repo: str, oid: str, upload: str | None, part: str | None) -> None:
        repository = self.repository(repo)
        arrived = repository.incoming(oid, uuid.uuid4().hex)
        try:
            with arrived.open("wb") as file:
                for piece in self.body:
                    file.write(piece)
                    with self.hub.lock:
                        self.hub.received[oid] += len(piece)
            etag, _ = hashes(arrived)
            if upload and part:
                arrived.replace(repository.incoming(oid, upload, str(int(part))))
            else:
                repository.keep(arrived, oid)
        finally:
            arrived.unlink(missing_ok=True)
        self.answer(b"", headers={"ETag": f'"{etag}"'})

    @route("POST", rf"/api/complete_multipart/{REPO}/{_OID}/(?P<upload>\w+)")
    def complete(self, repo: str, oid: str, upload: str) -> None:
        repository, asked = self.repository(repo), self.json()
        numbers = [part["partNumber"] for part in asked["parts"]]
        parts = [repository.incoming(oid, upload, str(number)) for number in numbers]
        whole = repository.incoming(oid, upload)
        if numbers != list(range(1, len(numbers) + 1)) or asked["oid"] != oid:
            raise Refused(400, "InvalidPartOrder")
        for part, path in zip(asked["parts"], parts, strict=True):
            if not path.is_file() or part["etag"] != f'"{hashes(path)[0]}"':
                raise Refused(400, "InvalidPart")
        with whole.open("wb") as file:
            for path in parts:
                file.write(path.read_bytes())
                path.unlink()
        repository.keep(whole, oid)
        self.answer({"success": True})

    @route("POST", f"{API}/commit/{REVISION}")
    def commit(self, repo: str, revision: str) -> None:
        pull = "create_pr" in self.query
        account = self._may_write(repo, revision, pull=pull)
        lines = [json.loads(line) for line in b"".join(self.body).splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        changes = [_change(line["key"], line["value"]) for line in lines[1:]]
        repository, parent = self.repository(repo), header.get("parentCommit")
        words = (header["summary"], header.get("description", ""), account.name)
        with repository.lock:
            self.commit_at(repo, parent if pull and parent else revision)
            if revision in repository.commits and not pull:
                raise Refused(404, f"Not a branch: {revision}", "RevisionNotFound")
            commit = repository.commit(
                revision, changes, *words, parent, pull=pull, recorded=self.fault.recorded
            )
            num = len(repository.discussions)
        with self.hub.lock:
            self.hub.commits_made += 1
        place = f"{self.hub.address}/{repo}"
        content = {"success": True, "commitOid": commit.id, "hookOutput": ""}
        content["commitUrl"] = f"{place}/commit/{commit.id}"
        if pull:
            content["pullRequestUrl"] = f"{place}/discussions/{num}"
        self.answer(content)

    def _may_write(
        self, repo: str, ref: str = "main", words: str = _MAY_NOT, pull: bool = False
    ) -> Account:
        """Who writes to a branch, to a pull request of their own, or opens one.

        Raises:
            Refused: the token may not.
        """
        account, num = self.account(), ref.removeprefix("refs/pr/")
        if account.role == "read":
            raise Refused(403, _READ_TOKEN)
        found = self.repository(repo).discussions.get(int(num)) if num.isdecimal() else None
        if pull or account.may_write(repo) or (found and found.author == account.name):
            return account
        raise Refused(403, words)


def _mode(commit: Commit, file: dict[str, Any]) -> str:
    """Whether a file is to be stored with LFS, by its name, its first bytes and its size."""
    name, attributes = file["path"], commit.folder / ".gitattributes"
    named = attributes.is_file() and attributed(attributes.read_text(), name)
    binary = b"\0" in base64.b64decode(file["sample"])
    large = is_large(name) or named or binary or file["size"] > LARGE_BYTES
    return "lfs" if large else "regular"


def _oid(commit: Commit, name: str) -> str | None:
    """What a file is known by: SHA-256 of a large one, git object id of another."""
    if not (commit.folder / name).is_file():
        return None
    record = commit.record(name, {})
    return str(record["lfs"]["sha256"] if "lfs" in record else record["blobId"])


def _change(key: str, value: dict[str, Any]) -> Change:
    path = value["path"]
    if key == "file":
        return Change(path, content=base64.b64decode(value["content"]))
    if key == "lfsFile":
        return Change(path, oid=value["oid"])
    return Change(path if key == "deletedFile" else path.rstrip("/") + "/")
