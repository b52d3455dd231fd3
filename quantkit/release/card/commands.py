"""Commands of a model card that take more than a template: download, find, plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence

from quantkit.core.units import tokens_text
from quantkit.release.card.facts import CardFacts, gpus_text
from quantkit.release.contents import BuiltLevel
from quantkit.release.fits import TargetFits
from quantkit.release.layout import MANIFEST, SUMS, evidence_folder

Command = list[str]

# common/download.cpp: words in the names of files that gguf_filename_is_model does not take
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


def download(repository: str, folder: str, *patterns: str) -> Command:
    """Downloads the repository's files of these names or patterns into `folder`."""
    included = [word for pattern in patterns for word in ("--include", pattern)]
    return ["hf", "download", repository, *included, "--local-dir", folder]


def level_patterns(level: BuiltLevel, imatrix: str) -> tuple[str, ...]:
    """A level with its launch files, and all that `quantkit verify` reads."""
    wanted = level.names[0] if len(level.names) == 1 else f"{level.name}/*"
    evidence = f"{evidence_folder(level.name)}/*"
    return (wanted, evidence, imatrix, MANIFEST, "checkpoint.json", SUMS)


def with_model(command: str, *model: str) -> Command:
    """The planned command for another file, or for one in a repository."""
    words = shlex.split(command)
    at = words.index("-m")
    return [*words[:at], *model, *words[at + 2 :]]


def hub_source(repository: str, level: str, files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """llama.cpp's options for the level of a repository: `-hf OWNER/NAME:LEVEL`.

    llama.cpp takes the first file whose path has the tag, in any case, before a point or a dash
    (`find_best_model` in common/download.cpp). Where that may be another file, the file is named.

    Args:
        files: of all levels; of shards the first is enough.
    """
    tag = re.compile(f"{level}[.-]", re.IGNORECASE)
    found = {name for name, paths in files.items() if any(map(tag.search, paths))}
    first = files[level][0]
    known = not any(word in first.rpartition("/")[2] for word in _NO_MODELS)
    if known and found == {level}:
        return ("-hf", f"{repository}:{level}")
    return ("-hf", repository, "-hff", first)


def best_level(fits: TargetFits, levels: Sequence[BuiltLevel]) -> BuiltLevel | None:
    """The largest level that passed, and fits with the target's own context."""
    fitting = [
        level
        for level in levels
        if level.result.passed and (fits.levels.get(level.name) or 0) >= fits.target.context_tokens
    ]
    return max(fitting, key=lambda level: level.result.size_bytes, default=None)


def plan_lines(facts: CardFacts) -> list[str]:
    """For each other target, what fits there, and the command that writes its launch files."""
    lines = []
    for fits in facts.fits.targets:
        target, best = fits.target, best_level(fits, facts.levels)
        if best is None or target.name == facts.target.name:
            continue
        path = f"{facts.folder}/{best.names[0]}"
        command = ["quantkit", "plan", "--model", path, "--target", target.name]
        context = tokens_text(target.context_tokens)
        lines += [
            f"# {gpus_text(target)}: {best.name} at {context}",
            shlex.join([*command, "--launch", path.rpartition("/")[0]]),
        ]
    return lines
