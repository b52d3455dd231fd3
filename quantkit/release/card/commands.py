"""The commands of a model card: get a level, run it, build it again."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping, Sequence

from quantkit.plan.launch.files import SERVER_SCRIPT
from quantkit.release.names import MANIFEST, SUMS, evidence_folder

_CHECKPOINT = "checkpoint.json"

# common/download.cpp: what gguf_filename_is_model takes for something else than a model
_NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")


def get_command(repository: str, patterns: Iterable[str], folder: str) -> list[str]:
    """Brings the repository's files of these names or patterns into `folder`."""
    included = [word for pattern in patterns for word in ("--include", pattern)]
    return ["hf", "download", repository, *included, "--local-dir", folder]


def download_command(
    repository: str, level: str, files: Sequence[str], imatrix: str, folder: str
) -> list[str]:
    """Brings a level with its launch files and all that `quantkit verify` reads into `folder`."""
    wanted = files[0] if len(files) == 1 else f"{level}/*"
    evidence = f"{evidence_folder(level)}/*"
    return get_command(repository, (wanted, evidence, imatrix, MANIFEST, _CHECKPOINT, SUMS), folder)


def script_command(level: str, folder: str) -> list[str]:
    """Starts the server as it was planned; a download keeps no executable bit."""
    return ["sh", f"{folder}/{evidence_folder(level)}/{SERVER_SCRIPT}"]


def local_command(command: str, file: str, folder: str) -> list[str]:
    """The planned command, of the file where `download_command` brings it."""
    return _with_model(command, ("-m", f"{folder}/{file}"))


def hub_command(command: str, source: Sequence[str]) -> list[str]:
    """The planned command, of a file that llama.cpp downloads itself: see `hub_source`."""
    return _with_model(command, source)


def hub_source(repository: str, level: str, files: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """llama.cpp's options for the level of a repository: `-hf OWNER/NAME:LEVEL`.

    It takes the first file whose path has the tag, in any case, before a point or a dash
    (`find_best_model` in common/download.cpp); where that may be another file, the file is named.

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


def _with_model(command: str, model: Iterable[str]) -> list[str]:
    words = shlex.split(command)
    at = words.index("-m")
    return [*words[:at], *model, *words[at + 2 :]]
