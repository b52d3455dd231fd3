"""What a model card is made from, and its commands: download, find, plan."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.units import tokens_text
from quantkit.release.card.front_matter import SourceCard
from quantkit.release.contents import BuiltLevel
from quantkit.release.fits import Fits, TargetFits
from quantkit.release.layout import MANIFEST, SUMS, evidence_folder
from quantkit.report.results import LevelResult
from quantkit.study.imatrix import Calibration

Command = list[str]
# common/download.cpp: words in the names of files that gguf_filename_is_model does not take
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from; words of the source and of others are shown, never obeyed.

    Attributes:
        repository: OWNER/NAME that the release is published to.
        recipe: without paths of the builder.
        levels: the published ones, at least one.
        left_out: levels of the build that are not published: baselines, failed, not chosen.
        coverage: as `report.coverage_values` returns it; None for a model without experts.
        versions: package → version, quantkit first.
        endpoint: of the Hub that the links lead to.
        licence_files: the source's licence and notices, which are published too.
        source_files: names of the source's files, as checkpoint.json has them.
        stops, unread_stops: texts at which generation ends, where there are several, and those at
            which llama.cpp does not end.
        is_demo: the source is the model that ships with quantkit.
    """

    repository: str
    model: str
    architecture: str
    parameters: int
    source: SourceCard
    target: Target
    recipe: Recipe
    levels: tuple[BuiltLevel, ...]
    left_out: tuple[LevelResult, ...]
    fits: Fits
    calibration: Calibration
    coverage: Mapping[str, Any] | None
    versions: Mapping[str, str]
    imatrix_file: str
    endpoint: str = "https://huggingface.co"
    licence_files: tuple[str, ...] = ()
    source_files: tuple[str, ...] = ()
    stops: tuple[str, ...] = ()
    unread_stops: tuple[str, ...] = ()
    is_demo: bool = False

    @property
    def folder(self) -> str:
        """Where the card's commands put the release on the reader's disk."""
        return f"./{self.model}" if self.model.startswith("-") else self.model

    @property
    def gguf_sources(self) -> tuple[str, ...]:
        """The source's files if they are GGUF files, the first shard first."""
        return tuple(name for name in self.source_files if name.endswith(".gguf"))

    @property
    def source_repository(self) -> str | None:
        """OWNER/NAME@COMMIT that holds the source's very files; None: unknown."""
        # a GGUF file names the repository of its weights, not of the file itself
        if self.source.repository is None or self.is_demo or self.gguf_sources:
            return None
        return "@".join(filter(None, (self.source.repository, self.source.commit)))

    @property
    def local_source(self) -> str:
        """The source on the reader's disk; its own name goes into the artifacts' metadata."""
        if self.is_demo:
            return "demo"
        return f"original/{next(iter(self.gguf_sources), self.model)}"


def gpus_text(target: Target) -> str:
    """The target's description, or its GPUs."""
    gpus = ", ".join(f"{gpu.count} × {gpu.name}" for gpu in target.gpus)
    return " ".join((target.description or gpus).split())


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
    (`find_best_model` in common/download.cpp). Where that may be another of all levels' `files`,
    the file is named.
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
    """For each other target, the best level there, and the command that writes its launch files."""
    lines = []
    for fits in facts.fits.targets:
        target, best = fits.target, best_level(fits, facts.levels)
        if best is None or target.name == facts.target.name:
            continue
        path = f"{facts.folder}/{best.names[0]}"
        command = ["quantkit", "plan", "--model", path, "--target", target.name]
        lines += [
            f"# {gpus_text(target)}: {best.name} at {tokens_text(target.context_tokens)}",
            shlex.join([*command, "--launch", path.rpartition("/")[0]]),
        ]
    return lines
