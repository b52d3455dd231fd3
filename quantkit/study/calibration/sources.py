"""A recipe's calibration sources: shipped texts, local files and folders, datasets of the Hub."""

from __future__ import annotations

import functools
from pathlib import Path

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.errors import InputError
from quantkit.core.paths import cache_folder, resource
from quantkit.core.progress import SILENT, Progress
from quantkit.core.yaml import Strict, read_yaml, validated
from quantkit.hub.reading import Hub
from quantkit.study.calibration.datasets import DatasetAddress, fetch_dataset, is_dataset
from quantkit.study.calibration.texts import ENDINGS, CalibrationSource


class ShippedText(Strict):
    """An entry of calibration/sources.yaml.

    Attributes:
        licence: SPDX expression.
        origin: short description.
        sha256: hash of the file.
    """

    licence: str
    origin: str
    sha256: str


def local_sources(recipe: ImatrixRecipe) -> tuple[CalibrationSource, ...]:
    """The sources on this disk; of datasets, only the addresses are checked.

    Raises:
        InputError: a local source does not exist, or a dataset's address is malformed.
    """
    found = []
    for name in recipe.sources:
        if is_dataset(name):
            DatasetAddress.parse(name)
        else:
            found.append(_local_source(name))
    return tuple(found)


def resolve_sources(
    recipe: ImatrixRecipe,
    progress: Progress = SILENT,
    hub: Hub | None = None,
    cache: Path | None = None,
) -> tuple[CalibrationSource, ...]:
    """The recipe's sources in order, with datasets downloaded into the cache.

    Args:
        hub: client for datasets; by default that of the environment.
        cache: folder of downloads; by default the user's.

    Raises:
        InputError: a source does not exist, has no readable file, or is refused.
        EnvironmentFault: the network, the Hub or the disk failed.
    """
    local_sources(recipe)  # report a misspelt path before anything is downloaded
    client = functools.cache(lambda: hub or Hub())
    folder = (cache or cache_folder()) / "datasets"
    return tuple(
        fetch_dataset(name, client, folder, progress) if is_dataset(name) else _local_source(name)
        for name in recipe.sources
    )


@functools.cache
def shipped_texts() -> dict[str, ShippedText]:
    """The entries of calibration/sources.yaml by file name."""
    path = resource("calibration") / "sources.yaml"
    return {name: validated(ShippedText, entry, path) for name, entry in read_yaml(path).items()}


def shipped_name(name: str) -> str | None:
    """The file of calibration/ that a source names, with or without its extension."""
    return next((f for f in (name, f"{name}.txt", f"{name}.jsonl") if f in shipped_texts()), None)


def _local_source(name: str) -> CalibrationSource:
    """A text of calibration/, a file, or a folder's files."""
    shipped, file = shipped_texts(), shipped_name(name)
    if file is not None:
        path = resource("calibration") / file
        return CalibrationSource(name, (path,), "quantkit", shipped[file].licence)
    return CalibrationSource(name, _files_at(Path(name), shipped), "disk", None)


def _files_at(path: Path, shipped: dict[str, ShippedText]) -> tuple[Path, ...]:
    if path.is_file():
        return (path,)
    if not path.is_dir():
        raise InputError(
            f"no calibration text {str(path)!r}: give a file, a folder, "
            f"hf://datasets/OWNER/NAME, or one of {', '.join(shipped)}"
        )
    below = (file.relative_to(path) for file in path.rglob("*") if file.suffix in ENDINGS)
    files = sorted(file for file in below if (path / file).is_file())
    if not files:
        raise InputError(f"no calibration text in the folder {path}: {', '.join(ENDINGS)} are read")
    return tuple(path / file for file in files)
