"""What the loopback hub is read with: the account, records of repositories, and files.

A small file comes at once; of a large one the first server says where the second has it. Either is
sent whole or in ranges, and goes wrong as it is told.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from loopback_cards import front_matter
from loopback_requests import API, PIECE_BYTES, REPO, REVISION, Fault, Requests, route
from loopback_store import Commit, Refused, hashes

DISCUSSIONS_PER_PAGE = 10
_OPEN = ("open", "draft")


@dataclass
class Served:
    """One answer with a file's bytes.

    Attributes:
        start, stop: the bytes that were asked for.
        sent_bytes: how many were sent so far, the piece under way included.
    """

    name: str
    start: int
    stop: int
    sent_bytes: int = 0


class Reading(Requests):
    """GET and HEAD."""

    @route("GET", "/api/whoami-v2")
    def whoami(self) -> None:
        account = self.account()
        orgs = [{"type": "org", "name": n, "roleInOrg": role} for n, role in account.orgs.items()]
        auth = {"type": "access_token", "accessToken": {"displayName": "t", "role": account.role}}
        self.answer({"type": "user", "name": account.name, "orgs": orgs, "auth": auth})

    @route("GET", rf"{API}(?:/revision/(?P<revision>.+))?")
    def record(self, repo: str, revision: str | None) -> None:
        """What the Hub says of a repository: with `expand`, only that."""
        if self.hub.api_faults:
            fault = self.hub.api_faults.pop(0)
            fault = Fault(fault) if isinstance(fault, int) else fault
            raise fault.refusal(f"no, {self.token()}" if self.hub.echo_token else "")
        commit = self.commit_at(repo, revision or "main")
        blobs = "blobs" in self.query
        name = repo.removeprefix("datasets/")
        content = {
            "author": name.partition("/")[0],
            "cardData": self.hub.cards.get(repo, front_matter(commit)),
            "disabled": False,
            "gated": self.hub.gates.get(repo, "auto" if repo in self.hub.gated else False),
            "private": repo in self.hub.private,
            "sha": commit.id,
            "siblings": [
                commit.record(file, self.hub.claims) if blobs else {"rfilename": file}
                for file in commit.names()
            ],
        }
        wanted = parse_qs(self.path.partition("?")[2]).get("expand", list(content))
        self.answer({"id": name} | {key: content[key] for key in wanted if key in content})

    @route("GET", rf"{API}/tree/{REVISION}")
    def tree(self, repo: str, revision: str) -> None:
        commit = self.commit_at(repo, revision)
        entries = []
        for record in (commit.record(name, self.hub.claims) for name in commit.names()):
            entry: dict[str, Any] = {"type": "file", "path": record["rfilename"]}
            entry |= {"size": record["size"], "oid": record["blobId"]}
            if lfs := record.get("lfs"):
                entry["lfs"] = lfs | {"oid": lfs["sha256"]}
            entries.append(entry)
        self.answer(entries)

    @route("GET", rf"{API}/refs")
    def refs(self, repo: str) -> None:
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
            for name, commit in self.hub.repository(repo).branches.items()
        ]
        self.answer({"branches": branches, "converts": [], "tags": []})

    @route("GET", rf"{API}/discussions")
    def discussions(self, repo: str) -> None:
        found = list(self.hub.repository(repo).discussions.values())[::-1]
        if (status := self.query.get("status", "all")) != "all":
            found = [d for d in found if (d.status in _OPEN) == (status == "open")]
        if author := self.query.get("author"):
            found = [d for d in found if d.author == author]
        start = int(self.query.get("p", 0)) * DISCUSSIONS_PER_PAGE
        discussions = [
            {
                "num": discussion.num,
                "title": discussion.title,
                "status": discussion.status,
                "author": {"name": discussion.author},
                "createdAt": "2026-01-01T00:00:00.000Z",
                "isPullRequest": True,
                "repo": {"name": repo, "type": "model"},
            }
            for discussion in found[start : start + DISCUSSIONS_PER_PAGE]
        ]
        self.answer({"discussions": discussions, "count": len(found), "start": start})

    @route("GET", rf"/{REPO}/resolve/{REVISION}/(?P<file>.+)")
    def resolve(self, repo: str, revision: str, file: str) -> None:
        """A small file, or where a large one is."""
        commit = self.commit_at(repo, revision)
        if repo in self.hub.gated:
            raise Refused(403 if self.token() else 401, "", "GatedRepo")
        if not (commit.folder / file).is_file():
            raise Refused(404, "", "EntryNotFound", {"X-Repo-Commit": commit.id})
        if (fault := self.hub.always.get(file, Fault())).at_hub:
            raise fault.refusal()
        if commit.is_large(file):
            of = revision if commit.large is None else commit.id  # main may move meanwhile
            place = f"{repo}/{quote(of, safe='')}/{quote(file)}"
            headers = {"Location": f"{self.hub.large_address}/large/{place}?signature=x"}
            self.answer(b"", 302, headers | self._described(commit, file))
        else:
            self._send_file(commit, file)

    @route("GET", rf"/large/{REPO}/{REVISION}/(?P<file>.+)")
    def large(self, repo: str, revision: str, file: str) -> None:
        self._send_file(self.commit_at(repo, revision), file)

    def _described(self, commit: Commit, name: str) -> dict[str, str]:
        """Headers of the first server; a large file's hash, which takes time, where it is asked."""
        path = commit.folder / name
        headers = {"X-Repo-Commit": commit.id, "Accept-Ranges": "bytes"}
        if commit.is_large(name):
            headers["X-Linked-Size"] = str(path.stat().st_size)
            if self.command == "HEAD" or commit.large is not None:
                headers["X-Linked-Etag"] = f'"{hashes(path)[0]}"'
        else:
            headers["ETag"] = f'"{hashes(path)[1]}"'
        return headers

    def _send_file(self, commit: Commit, name: str) -> None:
        """The bytes of a file that were asked for."""
        hub, path = self.hub, commit.folder / name
        fault = Fault() if self.command == "HEAD" else hub.next_fault(name)
        if fault.status is not None:
            raise fault.refusal()
        stat = path.stat()
        size, start, stop = stat.st_size, 0, stat.st_size
        wanted = re.match(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted and not fault.ignore_range:
            start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
            stop = min(int(wanted[2] or size) + 1, size) if wanted[1] else size
            if start >= size:
                raise Refused(416, headers={"Content-Range": f"bytes */{size}"})
            self.send_response(206)
            claimed = start if fault.claimed_start is None else fault.claimed_start
            last = claimed + stop + fault.extra_bytes - start - 1
            self.send_header("Content-Range", f"bytes {claimed}-{last}/{size}")
        else:
            self.send_response(200)
        if fault.claimed_start is not None:
            start, stop = 0, stop - start
        if commit.is_large(name):  # of the second server, which knows no commits
            headers = {"ETag": f'"{stat.st_mtime_ns:x}-{size:x}"', "Accept-Ranges": "bytes"}
        else:
            headers = self._described(commit, name)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(stop - start + fault.extra_bytes))
        self.end_headers()
        if self.command == "HEAD":
            return
        served = Served(name, start, stop)
        with hub.lock:
            hub.served.append(served)
            hub.under_way += 1
            hub.together = max(hub.together, hub.under_way)
        try:
            self._send_content(path, served, fault)
        finally:
            with hub.lock:
                hub.under_way -= 1

    def _send_content(self, path: Path, served: Served, fault: Fault) -> None:
        most = served.stop if fault.most_bytes is None else served.start + fault.most_bytes
        end = min(served.stop, most)
        with path.open("rb") as file:
            file.seek(served.start)
            position = served.start
            while position < end and not self.hub.closing.is_set():
                piece = file.read(min(PIECE_BYTES, end - position))
                position += len(piece)
                if fault.corrupt and served.sent_bytes == 0:
                    piece = bytes([piece[0] ^ 1]) + piece[1:]
                served.sent_bytes += len(piece)  # first: a client has no byte that is not counted
                self.wfile.write(piece)
                if self.hub.bytes_per_second:
                    time.sleep(len(piece) / self.hub.bytes_per_second)
        self.wfile.write(b"x" * fault.extra_bytes)
        self.wfile.flush()
        if fault.stall_after is not None:
            self.hub.closing.wait(20)
        if fault.most_bytes is not None:
            self.close_connection = True
