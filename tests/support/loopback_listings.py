"""The API of the loopback hub: accounts, repositories, trees, commits, branches, pull requests.

The rules for the metadata of README.md are those that the Hub's own messages state; it has more.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, datetime
from urllib.parse import parse_qs

import yaml
from loopback_requests import Account, Requests
from loopback_store import Commit, Discussion

REPO = "(?P<repo>(?:datasets/)?[^/]+/[^/]+)"
API = rf"^/api/(?:models/|(?=datasets/)){REPO}"
DISCUSSIONS_PER_PAGE = 10
_TREE = re.compile(rf"{API}/tree/(?P<revision>[^/]+)$")
_COMMITS = re.compile(rf"{API}/commits/(?P<revision>[^/]+)$")
_REFS = re.compile(rf"{API}/refs$")
_DISCUSSIONS = re.compile(rf"{API}/discussions$")
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
        self.answer([self._entry(commit, name) for name in commit.names()])

    def _entry(self, commit: Commit, name: str) -> dict[str, object]:
        record = commit.record(name, self.hub.claims)
        entry = {"type": "file", "path": name, "size": record["size"], "oid": record["blobId"]}
        lfs = record.get("lfs")
        if isinstance(lfs, dict):
            entry["lfs"] = {key: lfs[key] for key in ("size", "pointerSize")}
            entry["lfs"] |= {"oid": lfs["sha256"]}  # type: ignore[operator]
        return entry

    def _commits(self, repo: str, match: re.Match[str]) -> None:
        history = self.commit_at(repo, match["revision"]).history()
        self.answer([
            {"id": c.id, "authors": [{"user": c.author}], "date": when(c.date), "title": c.title,
             "message": c.message}
            for c in history
        ])  # fmt: skip

    def _refs(self, repo: str, match: re.Match[str]) -> None:
        repository = self.hub.repository(repo)
        content: dict[str, list[dict[str, str]]] = {"converts": [], "tags": []}
        content["branches"] = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit.id}
            for name, commit in repository.branches.items()
        ]
        self.answer(content)

    def _discussions(self, repo: str, match: re.Match[str]) -> None:
        found = list(self.hub.repository(repo).discussions.values())[::-1]
        if (status := self.query.get("status", "all")) != "all":
            found = [d for d in found if (d.status in _OPEN) == (status == "open")]
        if author := self.query.get("author"):
            found = [d for d in found if d.author == author]
        start = int(self.query.get("p", 0)) * DISCUSSIONS_PER_PAGE
        page = found[start : start + DISCUSSIONS_PER_PAGE]
        discussions = [_talk(repo, discussion) for discussion in page]
        self.answer({"discussions": discussions, "count": len(found), "start": start})


def when(date: datetime) -> str:
    """A time as the API writes it."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.") + f"{date.microsecond // 1000:03d}Z"


def _described(account: Account) -> dict[str, object]:
    return {
        "type": "user",
        "name": account.name,
        "fullname": account.name.capitalize(),
        "orgs": [
            {"type": "org", "name": name, "fullname": name, "roleInOrg": role}
            for name, role in account.orgs.items()
        ],
        "auth": {
            "type": "access_token",
            "accessToken": {"displayName": "test", "role": account.role},
        },
    }


def _talk(repo: str, discussion: Discussion) -> dict[str, object]:
    return {
        "num": discussion.num,
        "title": discussion.title,
        "status": discussion.status,
        "author": {"name": discussion.author},
        "createdAt": when(discussion.date),
        "isPullRequest": True,
        "repo": {
            "name": repo.removeprefix("datasets/"),
            "type": "dataset" if repo.startswith("datasets/") else "model",
        },
    }


_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)^---\s*$", re.DOTALL | re.MULTILINE)
_LICENCES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigcode-openrail-m
    bigscience-bloom-rail-1.0 openrail++ afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
    cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1
    eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research
    lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 osl-3.0 postgresql
    ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4
    grok2-community gemma unknown other
    """.split()
)
_STRINGS = ("license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
_LISTS = ("license", "base_model", "tags", "language", "datasets", "metrics")
_MODEL = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NAME = re.compile(r"[a-z0-9.-]+")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]+)*|code|multilingual")
_LINK = re.compile(r"LICENSE(\.md)?|https?://\S+")
_RELATIONS = ("quantized", "finetune", "adapter", "merge")


def front_matter(commit: Commit) -> object:
    """The metadata of a commit's README.md; None without, and of a folder that a test gave."""
    readme = commit.folder / "README.md"
    if commit.large is None or not readme.is_file():
        return None
    match = _FRONT_MATTER.match(readme.read_text())
    return _plain(yaml.safe_load(match[1])) if match else None


def checked(text: str) -> tuple[list[str], list[str]]:
    """What is wrong with a README.md's metadata: errors, and warnings."""
    match = _FRONT_MATTER.match(text)
    if match is None or not match[1].strip():
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(match[1])
    except yaml.YAMLError as error:
        return [str(error)], []
    if not isinstance(card, dict):
        return ["metadata must be an object"], []
    return [*_wrong(card), *_wrong_results(card.get("model-index"))], []


def tags(card: object, commit: Commit) -> list[str]:
    """The tags that the Hub makes of a card and of the files."""
    found = ["gguf"] if any(name.endswith(".gguf") for name in commit.names()) else []
    if not isinstance(card, Mapping):
        return found
    bases = _several(card.get("base_model"))
    found += _several(card.get("tags")) + _several(card.get("language"))
    found += [f"base_model:{base}" for base in bases]
    if relation := card.get("base_model_relation"):
        found += [f"base_model:{relation}:{base}" for base in bases]
    found += [f"license:{licence}" for licence in _several(card.get("license"))]
    return list(dict.fromkeys(found))


def _wrong(card: Mapping[str, object]) -> Iterator[str]:
    for key in _STRINGS:
        if not isinstance(card.get(key, ""), str):
            yield f'"{key}" must be a string'
    for key in _LISTS:
        value = card.get(key, [])
        if not all(
            isinstance(item, str) for item in (value if isinstance(value, list) else [value])
        ):
            yield f'"{key}" must be a string or an array of strings'
    for licence in _several(card.get("license")):
        if licence not in _LICENCES:
            yield f'"license" must be one of [{", ".join(sorted(_LICENCES))}]'
    for base in _several(card.get("base_model")):
        if not _MODEL.fullmatch(base):
            yield f'"base_model" with value "{base}" is not valid. Use a model id from the Hub.'
    for language in _several(card.get("language")):
        if not _LANGUAGE.fullmatch(language):
            yield f'"language" with value "{language}" is not an ISO 639 code'
    if not _NAME.fullmatch(str(card.get("license_name", "x"))):
        yield '"license_name" fails to match the required pattern: /^[a-z0-9-.]+$/'
    if not _LINK.fullmatch(str(card.get("license_link", "LICENSE"))):
        yield '"license_link" must be LICENSE, LICENSE.md or a URL'
    if card.get("base_model_relation", "merge") not in _RELATIONS:
        yield f'"base_model_relation" must be one of [{", ".join(_RELATIONS)}]'


def _wrong_results(index: object) -> Iterator[str]:
    """Of the results that are shown beside a model."""
    if index is not None and not isinstance(index, list):
        yield '"model-index" must be an array'
        return
    for i, model in enumerate(index or []):
        if not isinstance(model.get("name"), str):
            yield f'"model-index[{i}].name" is required'
        for j, result in enumerate(model.get("results", [])):
            place = f"model-index[{i}].results[{j}]"
            for part, key in (("task", "type"), ("dataset", "type"), ("dataset", "name")):
                if not isinstance(result.get(part, {}).get(key), str):
                    yield f'"{place}.{part}.{key}" is required'
            for k, metric in enumerate(result.get("metrics", [])):
                for key in ("type", "value"):
                    if metric.get(key) is None:
                        yield f'"{place}.metrics[{k}].{key}" is required'


def _several(value: object) -> list[str]:
    """A value of a card that may stand alone or in a list."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [item for item in values if isinstance(item, str)]


def _plain(value: object) -> object:
    """A value as JSON has it: YAML knows dates."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.isoformat() if isinstance(value, date) else value
