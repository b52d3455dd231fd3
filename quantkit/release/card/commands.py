"""The commands of a model card: download a level, run it, build and verify it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from quantkit.plan.launch.files import SERVER_SCRIPT
from quantkit.release.card.facts import CardFacts
from quantkit.release.contents import BuiltLevel
from quantkit.release.documents import own_texts
from quantkit.release.fits import TargetFits
from quantkit.release.names import MANIFEST, RECIPE, SUMS, TARGET, evidence_folder

Command = list[str]

# common/download.cpp: words in the names of files that gguf_filename_is_model does not take
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
_PACKAGES = {"quantkit": "quantkit-gguf"}
"""Packages whose name on the index differs from the one that they install."""


@dataclass(frozen=True)
class LevelCommands:
    """How one level is run.

    Attributes:
        hub: llama.cpp's options for the file in the repository.
        planned: what the server script starts, without address and choice of GPUs.
        direct: the same, with llama.cpp's own download.
    """

    hub: tuple[str, ...]
    download: Command
    script: Command
    planned: Command
    direct: Command


def level_commands(facts: CardFacts, level: BuiltLevel) -> LevelCommands:
    """The commands that run `level`."""
    files = {level.name: level.names for level in facts.levels}
    hub = hub_source(facts.repository, level.name, files)
    words = shlex.split(level.result.command)
    at = words.index("-m")

    def with_model(*model: str) -> Command:
        return [*words[:at], *model, *words[at + 2 :]]

    return LevelCommands(
        hub=hub,
        download=download_command(
            facts.repository, level.name, level.names, facts.imatrix_file, facts.folder
        ),
        # a download keeps no executable bit
        script=["sh", f"{facts.folder}/{evidence_folder(level.name)}/{SERVER_SCRIPT}"],
        planned=with_model("-m", f"{facts.folder}/{level.names[0]}"),
        direct=with_model(*hub),
    )


def download_command(
    repository: str, level: str, files: Sequence[str], imatrix: str, folder: str
) -> Command:
    """Downloads a level with its launch files and all that `quantkit verify` reads."""
    wanted = files[0] if len(files) == 1 else f"{level}/*"
    others = (f"{evidence_folder(level)}/*", imatrix, MANIFEST, "checkpoint.json", SUMS)
    return _download(repository, (wanted, *others), folder)


def _download(repository: str, patterns: Iterable[str], folder: str) -> Command:
    included = [word for pattern in patterns for word in ("--include", pattern)]
    return ["hf", "download", repository, *included, "--local-dir", folder]


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


def plan_commands(facts: CardFacts) -> list[tuple[TargetFits, BuiltLevel, Command]]:
    """For each other target, the command that writes launch files for its best level."""
    found = []
    for fits in facts.fits.targets:
        best = best_level(fits, facts.levels)
        if best is None or fits.target.name == facts.target.name:
            continue
        path = f"{facts.folder}/{best.names[0]}"
        command = ["quantkit", "plan", "--model", path, "--target", fits.target.name]
        found.append((fits, best, [*command, "--launch", path.rpartition("/")[0]]))
    return found


@dataclass(frozen=True)
class Reproduction:
    """How the files are made and verified again.

    All commands run in the folder that the reader is in, so one shell can run them in order.

    Attributes:
        build: the whole build; empty where a calibration text is not published.
        quantize: one level, from its types and the importance matrix; last a line of the shell.
        verify: the repository, and the downloaded folder.
        compare: the same, with the original model.
    """

    install: Command
    build: tuple[Command, ...]
    quantize: tuple[Command | str, ...]
    verify: tuple[Command, ...]
    compare: tuple[Command, ...]


def reproduction(facts: CardFacts) -> Reproduction:
    """Commands for the versions, the recipe and the target that made the release."""
    folder, level, source = facts.folder, facts.levels[0].name, facts.local_source
    repository, imatrix = facts.source_repository, facts.imatrix_file
    types = f"{evidence_folder(level)}/allocation.json"
    packages = (f"{_PACKAGES.get(name, name)}=={text}" for name, text in facts.versions.items())
    ready = facts.calibration.ready is not None
    matrix = ["--imatrix", f"{folder}/{imatrix}"]
    mtp = ["--mtp", "keep"] if facts.recipe.convert.mtp == "keep" else []
    original = [["quantkit", "download", repository, "--out", source]] if repository else []
    build = ["quantkit", "build", "--model", repository or source]
    build += ["--target", f"{folder}/{TARGET}", "--recipe", f"{folder}/{RECIPE}"]
    quantize = ["quantkit", "quantize", "--model", source, "--types", f"{folder}/{types}"]
    verify = ["quantkit", "verify"]
    inputs = (RECIPE, TARGET, *((imatrix,) if ready else ()))
    return Reproduction(
        install=["pip", "install", *packages],
        build=()
        if own_texts(facts.recipe, ready=ready)
        else (_download(facts.repository, inputs, folder), [*build, *(matrix if ready else ())]),
        quantize=(
            _download(facts.repository, (imatrix, types), folder),
            *original,
            [*quantize, *matrix, *mtp, "--out", f"{level}-again.gguf"],
            f"sha256sum {level}-again*.gguf",
        ),
        verify=([*verify, facts.repository], [*verify, folder]),
        compare=(
            *original,
            [*verify, facts.repository, "--source", source],
            [*verify, folder, "--source", source, "--full"],
        ),
    )
