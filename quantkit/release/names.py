"""Names of repositories, of branches, and of the files in a release."""

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
"""The folder that has one folder for each level."""
_MOST_CHARACTERS = 96
_PART = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_COMMIT = re.compile("[0-9a-f]{40}")
_BRANCH_PART = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?(?<!\.lock)")


def repository_name(to: str, model: str, *, exact: bool = False) -> str:
    """OWNER/NAME for `--to`, which is OWNER or OWNER/NAME; `-GGUF` is appended if missing.

    Args:
        model: the name if `to` has none.
        exact: do not append `-GGUF`.

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


def artifact_names(level: str, files: Sequence[str]) -> tuple[str, ...]:
    """Paths of a level's files: a single file at the top, shards in a folder of the level."""
    return tuple(files) if len(files) == 1 else tuple(f"{level}/{name}" for name in files)


def evidence_folder(level: str) -> str:
    """The folder of a level's plan, results and launch files."""
    return f"{EVIDENCE}/{level}"


def model_folder(files: Sequence[str]) -> str:
    """The folder of a level's artifact, relative to its evidence folder."""
    folder = files[0].rpartition("/")[0]
    return f"../../{folder}" if folder else "../.."


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
