"""What a repository and the files in it are called, as people look for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantkit.core.errors import InputError

SUFFIX = "-GGUF"
CARD = "README.md"
SUMS = "SHA256SUMS"
MANIFEST = "release.json"
RECIPE = "recipe.yaml"
TARGET = "target.yaml"
REPORT = "report.html"
EVIDENCE = "levels"
"""Folder of a folder a level."""
_MOST_CHARACTERS = 96
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")


_COMMIT = re.compile("[0-9a-f]{40}")
_BRANCH_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?(?<!\.lock)")


def repository_name(to: str, model: str, *, exact: bool = False) -> str:
    """OWNER/NAME from what `--to` says: OWNER alone, or OWNER/NAME, with `-GGUF` at the end.

    Args:
        model: what artifacts are called after; the name where `to` has none.
        exact: the name is taken as it is.

    Raises:
        InputError: the Hub takes no such name.
    """
    owner, slash, name = to.partition("/")
    name = name if slash else model
    if not exact and not name.lower().endswith(SUFFIX.lower()):
        name += SUFFIX
    whole = f"{owner}/{name}"
    wrong = [part for part in (owner, name) if not _PART.fullmatch(part)]
    if wrong or "--" in whole or ".." in whole or len(whole) > _MOST_CHARACTERS:
        raise InputError(
            f"{whole!r} is no name of a repository: give OWNER or OWNER/NAME, of letters, digits, "
            f"'-', '_' and '.', without '--' and '..', {_MOST_CHARACTERS} characters at most"
        )
    return whole


def artifact_names(level: str, files: Sequence[str]) -> tuple[str, ...]:
    """Where a level's files lie: one file at the top, shards in a folder of the level."""
    return tuple(files) if len(files) == 1 else tuple(f"{level}/{name}" for name in files)


def evidence_folder(level: str) -> str:
    """Where what was planned and found of a level lies."""
    return f"{EVIDENCE}/{level}"


def model_folder(files: Sequence[str]) -> str:
    """The folder of a level's artifact, seen from its evidence."""
    folder = files[0].rpartition("/")[0]
    return f"../../{folder}" if folder else "../.."


def check_branch(name: str) -> None:
    """See that `name` can be a branch.

    Raises:
        InputError: git or the Hub would take it for something else, or not at all.
    """
    parts = name.split("/")
    means_another = name == "HEAD" or parts[0] == "refs" or _COMMIT.fullmatch(name)
    wrong = ".." in name or not all(_BRANCH_PART.fullmatch(part) for part in parts)
    if means_another or wrong or len(name) > _MOST_CHARACTERS:
        raise InputError(
            f"{name!r} is no name of a branch: give letters, digits, '-', '_', '.' and '/', "
            f"{_MOST_CHARACTERS} characters at most"
        )
