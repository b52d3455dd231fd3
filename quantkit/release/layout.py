"""The files of a release: their names, release.json and SHA256SUMS.

Both documents may come from anybody, and names in them become paths: see `unsafe_name`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from quantkit.core.documents import JsonDocument, Record
from quantkit.core.errors import InputError

SUFFIX = "-GGUF"
CARD = "README.md"
SUMS = "SHA256SUMS"
MANIFEST = "release.json"
RECIPE = "recipe.yaml"
TARGET = "target.yaml"
REPORT = "report.html"
ALLOCATION, VALIDATION, ANSWERS = "allocation.json", "validation.json", "niah.jsonl"
HEATMAP = "heatmap.png"
_MOST_CHARACTERS = 96
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_COMMIT = re.compile("[0-9a-f]{40}")
_BRANCH_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?(?<!\.lock)")
_LINE = re.compile(r"(?P<sha256>[0-9A-Fa-f]{64}) [ *](?P<name>.+)", re.DOTALL)
_DRIVE = re.compile(r"[A-Za-z]:")


def repository_name(to: str, model: str, *, exact: bool = False) -> str:
    """OWNER/NAME for `--to`, which is OWNER or OWNER/NAME; NAME is `model` if it has none.

    `-GGUF` is appended where it is missing, unless `exact`.

    Raises:
        InputError: the Hub does not accept the name.
    """
    owner, slash, name = to.partition("/")
    name = name if slash else model
    if not exact and not name.lower().endswith(SUFFIX.lower()):
        name += SUFFIX
    whole = f"{owner}/{name}"
    wrong = [part for part in (owner, name) if not _PART.fullmatch(part)]
    if wrong or "--" in whole or ".." in whole or len(whole) > _MOST_CHARACTERS:
        raise InputError(
            f"Invalid repository id {whole!r}: expected OWNER or OWNER/NAME of letters, digits, "
            f"'-', '_' and '.', without '--' and '..', at most {_MOST_CHARACTERS} characters"
        )
    return whole


def check_branch(name: str) -> None:
    """Check that `name` can be a branch.

    Raises:
        InputError: git or the Hub would reject it or take it for something else.
    """
    parts = name.split("/")
    means_another = name == "HEAD" or parts[0] == "refs" or _COMMIT.fullmatch(name)
    wrong = ".." in name or not all(_BRANCH_PART.fullmatch(part) for part in parts)
    if means_another or wrong or len(name) > _MOST_CHARACTERS:
        raise InputError(
            f"Invalid branch name {name!r}: expected letters, digits, '-', '_', '.' and '/', at "
            f"most {_MOST_CHARACTERS} characters"
        )


def artifact_names(level: str, files: Sequence[str]) -> tuple[str, ...]:
    """Paths of a level's files: a single file at the top, shards in a folder of the level."""
    return tuple(files) if len(files) == 1 else tuple(f"{level}/{name}" for name in files)


def evidence_folder(level: str) -> str:
    """The folder of a level's plan, results and launch files."""
    return f"levels/{level}"


def model_folder(files: Sequence[str]) -> str:
    """The folder of a level's artifact, relative to its evidence folder."""
    folder = files[0].rpartition("/")[0]
    return f"../../{folder}" if folder else "../.."


class ReleasedLevel(Record):
    """A level of a release: its GGUF files, the first shard first, and its evidence's folder."""

    files: tuple[str, ...] = Field(min_length=1)
    evidence: str
    passed: bool
    baseline: bool
    size_bytes: int = Field(ge=0)
    bits_per_weight: float = Field(ge=0, le=64)


class ReleaseSource(Record):
    """The model on the Hub that a release was made from; None where it is not known."""

    repository: str | None = None
    commit: str | None = None


class Manifest(JsonDocument):
    """release.json: what a release consists of, and what it was made from.

    Attributes:
        model: what artifacts are called after.
        mtp: whether prediction layers are in the artifacts.
        versions: by program or package.
    """

    version: Literal[2] = 2
    model: str
    architecture: str
    parameters: int = Field(ge=0)
    source: ReleaseSource
    mtp: Literal["drop", "keep"]
    imatrix: str
    versions: dict[str, str]
    levels: dict[str, ReleasedLevel]


def unsafe_name(name: str) -> str | None:
    """Why `name` cannot be a file below a release's folder; None if it can.

    A name is a relative path with `/` between its parts, valid on every system.
    """
    if not name:
        return "is empty"
    if "\\" in name:
        return "holds a backslash"
    if not name.isprintable():  # line breaks, controls, surrogates, bidirectional marks
        return "holds a character that is not printable"
    if name.startswith("/") or _DRIVE.match(name):
        return "is not relative"
    if any(part in ("", ".", "..") for part in name.split("/")):
        return "has an empty part, '.' or '..'"
    return None


def sums_text(hashes: Mapping[str, str]) -> str:
    """SHA256SUMS of name → SHA-256, as coreutils' `sha256sum` writes it, sorted by name.

    Raises:
        InputError: an unsafe name; see `unsafe_name`.
    """
    for name in hashes:
        reason = unsafe_name(name)
        if reason is not None:
            raise InputError(f"{name!r} {reason}, so it cannot be published; rename the file")
    return "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))


def parse_sums(text: str) -> dict[str, str]:
    """Name → SHA-256 in lower case, of the lines that `sha256sum` writes, with --binary too.

    Raises:
        InputError: a line of another form, or a name that is unsafe, escaped or listed twice.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        if not line:
            continue
        where = f"{SUMS}, line {number}"
        if line.startswith("\\"):
            raise InputError(f"{where}: an escaped name, which no release has: {line[:100]!r}")
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(
                f"{where} is not 64 hexadecimal digits, two spaces and a name: {line[:100]!r}"
            )
        name = match["name"]
        reason = "is listed twice" if name in found else unsafe_name(name)
        if reason is not None:
            raise InputError(f"{where}: the name {name[:100]!r} {reason}")
        found[name] = match["sha256"].lower()
    return found
