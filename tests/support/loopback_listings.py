"""What the API of the loopback hub tells: who asks, repositories, trees, commits, refs, talks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote

from loopback_cards import front_matter, tags
from loopback_commits import Commit
from loopback_requests import Account, Requests
from loopback_store import Discussion, Refused

REPO = "(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
API = rf"^/api/(?:models/|(?=datasets/)){REPO}"
DISCUSSIONS_PER_PAGE = 10
_TREE = re.compile(rf"{API}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?$")
_COMMITS = re.compile(rf"{API}/commits/(?P<revision>[^/]+)$")
_REFS = re.compile(rf"{API}/refs$")
_DISCUSSIONS = re.compile(rf"{API}/discussions$")
_DISCUSSION = re.compile(rf"{API}/discussions/(?P<num>\d+)$")
_OPEN = ("open", "draft")


class Listings(Requests):
    """GET of everything but files."""

    def listed(self) -> bool:
        """Answer a request of this kind; False: it is another."""
        if self.route == "/api/whoami-v2":
            self.answer(_described(self.account()))
            return True
        for pattern, answer in (
            (_TREE, self._tree),
            (_COMMITS, self._commits),
            (_REFS, self._refs),
            (_DISCUSSIONS, self._discussions),
            (_DISCUSSION, self._discussion),
        ):
            if match := pattern.match(self.route):
                answer(self.visible(match), match)
                return True
        return False

    def send_record(self, repo: str, commit: Commit) -> None:
        """Send what the Hub says of a repository: with `expand`, only that."""
        blobs = "blobs" in self.query
        siblings = [
            commit.record(name, self.hub.claims) if blobs else {"rfilename": name}
            for name in commit.names()
        ]
        card = self.hub.cards.get(repo, front_matter(commit))
        gated = self.hub.gates.get(repo, "auto" if repo in self.hub.gated else False)
        name = repo.removeprefix("datasets/")
        content = {
            "author": name.partition("/")[0],
            "cardData": card,
            "createdAt": when(list(commit.history())[-1].date),
            "disabled": False,
            "gated": gated,
            "lastModified": when(commit.date),
            "private": repo in self.hub.private,
            "sha": commit.id,
            "siblings": siblings,
            "tags": tags(card, commit),
        }
        wanted = parse_qs(self.path.partition("?")[2]).get("expand", list(content))
        self.answer({"id": name} | {key: content[key] for key in wanted if key in content})

    def _tree(self, repo: str, match: re.Match[str]) -> None:
        commit = self.commit_at(repo, match["revision"])
        top = unquote(match["path"] or "")
        below = [n for n in commit.names() if not top or n.startswith(f"{top}/")]
        if top and not below:
            raise Refused(404, f"{top} does not exist on {unquote(match['revision'])}")
        recursive = self.query.get("recursive") == "true"
        depth = len(PurePosixPath(top).parts) + 1
        entries = [self._entry(commit, n) for n in below if recursive or n.count("/") < depth]
        folders = {p.as_posix() for n in below for p in PurePosixPath(n).parents}
        folders = {f for f in folders if f.startswith(f"{top}/" if top else "") and f != "."}
        for folder in sorted(f for f in folders if recursive or f.count("/") < depth):
            entries.append({"type": "directory", "oid": commit.id, "size": 0, "path": folder})
        self.answer(entries)

    def paths(self, repo: str, match: re.Match[str]) -> None:
        """Answer which of the paths that were asked for are there, and as what."""
        commit = self.commit_at(repo, match["revision"])
        asked = parse_qs(b"".join(self.body).decode()).get("paths", [])
        names = set(commit.names())
        self.answer([self._entry(commit, name) for name in asked if name in names])

    def _entry(self, commit: Commit, name: str) -> dict[str, object]:
        record = commit.record(name, self.hub.claims)
        entry = {"type": "file", "path": name, "size": record["size"], "oid": record["blobId"]}
        lfs = record.get("lfs")
        if isinstance(lfs, dict):
            entry["lfs"] = {key: lfs[key] for key in ("size", "pointerSize")}
            entry["lfs"] |= {"oid": lfs["sha256"]}  # type: ignore[operator]
        return entry

    def _commits(self, repo: str, match: re.Match[str]) -> None:
        self.answer(
            [
                {
                    "id": commit.id,
                    "authors": [{"user": commit.author}],
                    "date": when(commit.date),
                    "title": commit.title,
                    "message": commit.message,
                }
                for commit in self.commit_at(repo, match["revision"]).history()
            ]
        )

    def _refs(self, repo: str, match: re.Match[str]) -> None:
        repository = self.hub.repository(repo)
        content: dict[str, list[dict[str, str]]] = {"converts": [], "tags": []}
        content["branches"] = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
            for name, commit in repository.branches.items()
        ]
        if "include_prs" in self.query:
            content["pullRequests"] = [
                {"name": f"refs/pr/{d.num}", "ref": f"refs/pr/{d.num}", "targetCommit": d.head.id}
                for d in repository.discussions.values()
                if d.head is not None
            ]
        self.answer(content)

    def _discussions(self, repo: str, match: re.Match[str]) -> None:
        found = list(self.hub.repository(repo).discussions.values())[::-1]
        if (kind := self.query.get("type", "all")) != "all":
            found = [d for d in found if (d.head is not None) == (kind == "pull_request")]
        if (status := self.query.get("status", "all")) != "all":
            found = [d for d in found if (d.status in _OPEN) == (status == "open")]
        if author := self.query.get("author"):
            found = [d for d in found if d.author == author]
        start = int(self.query.get("p", 0)) * DISCUSSIONS_PER_PAGE
        page = found[start : start + DISCUSSIONS_PER_PAGE]
        discussions = [_talk(repo, discussion) for discussion in page]
        self.answer({"discussions": discussions, "count": len(found), "start": start})

    def _discussion(self, repo: str, match: re.Match[str]) -> None:
        discussion = self.hub.repository(repo).discussions.get(int(match["num"]))
        if discussion is None:
            raise Refused(404, "Discussion not found")
        content = _talk(repo, discussion) | {"events": list(_events(discussion))}
        if discussion.head is not None:
            content |= {"changes": {"base": "refs/heads/main"}, "filesWithConflicts": []}
        self.answer(content)


def when(date: datetime) -> str:
    """A time as the API writes it."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def _described(account: Account) -> dict[str, object]:
    token: dict[str, object] = {"displayName": "test", "role": account.role}
    if account.role == "fineGrained":
        scoped = [
            {
                "entity": {"type": "model" if "/" in name else "user", "name": name},
                "permissions": list(permissions),
            }
            for name, permissions in account.scopes.items()
        ]
        token["fineGrained"] = {"canReadGatedRepos": False, "global": [], "scoped": scoped}
    return {
        "type": "user",
        "name": account.name,
        "fullname": account.name.capitalize(),
        "orgs": [
            {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
            for name, role in account.orgs.items()
        ],
        "auth": {"type": "access_token", "accessToken": token},
    }


def _talk(repo: str, discussion: Discussion) -> dict[str, object]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "createdAt": when(discussion.date),
        "isPullRequest": discussion.head is not None,
        "repo": {
            "name": repo.removeprefix("datasets/"),
            "type": "dataset" if repo.startswith("datasets/") else "model",
        },
    }


def _events(discussion: Discussion) -> Iterator[dict[str, object]]:
    """The commits of a pull request, the first one first."""
    made: list[Commit] = []
    for commit in discussion.head.history() if discussion.head else ():
        if discussion.base is not None and commit.id == discussion.base.id:
            break
        made.insert(0, commit)
    for commit in made:
        yield {
            "id": commit.id[:24],
            "type": "commit",
            "createdAt": when(commit.date),
            "author": {"name": commit.author},
            "data": {"subject": commit.title, "oid": commit.id},
        }
