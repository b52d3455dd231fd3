"""Files that ship with quantkit, its cache, and addresses of repositories on the Hub."""

from __future__ import annotations

import functools
import lzma
import os
import re
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.core.parsing import read_text

_PACKAGE = Path(__file__).parent.parent


def resource(name: str) -> Path:
    """The folder `name` (`recipes`, `calibration`): inside the wheel, or at the checkout's root."""
    inside = _PACKAGE / name
    return inside if inside.exists() else _PACKAGE.parent / name


DEMO_MODEL = _PACKAGE / "data" / "demo-model"
PARAPHRASES = _PACKAGE / "data" / "paraphrases.txt"
HAYSTACK = _PACKAGE / "data" / "haystack.txt.xz"
TEMPLATES = _PACKAGE / "report" / "templates"


def cache_folder() -> Path:
    """The user's cache folder for quantkit, which may not exist yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "quantkit"


@dataclass(frozen=True)
class HubAddress:
    """A repository, and a branch, tag or commit of it; None: its main branch."""

    repository: str
    revision: str | None = None

    @staticmethod
    def parse(text: str) -> HubAddress:
        """`OWNER/NAME` or `OWNER/NAME@REVISION`; whether there is one of that name is not known."""
        repository, _, revision = text.partition("@")
        return HubAddress(repository, revision or None)

    @staticmethod
    def of_cached(path: Path) -> HubAddress | None:
        """The model whose folder in the Hub's cache `path` is, or a snapshot in it; else None.

        The cache is that of huggingface_hub: models--OWNER--NAME/snapshots/COMMIT.
        """
        for place in (Path(os.path.abspath(path)), path.resolve()):
            inside = place.parent.name == _SNAPSHOTS
            folder = place.parent.parent if inside else place
            kind, *names = folder.name.split("--")
            if kind == "models" and names and all(names):
                return HubAddress("/".join(names), place.name if inside else None)
        return None

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.rpartition("/")[2]


_SNAPSHOTS = "snapshots"


def cached_snapshot(folder: Path) -> Path:
    """The files of a model: of its folder in the Hub's cache those of `main`, else `folder` itself.

    Raises:
        InputError: the cache has several commits of the model, and none of them is known as `main`.
    """
    snapshots = folder / _SNAPSHOTS
    if HubAddress.of_cached(folder) is None or not snapshots.is_dir():
        return folder
    there = sorted(path for path in snapshots.iterdir() if path.is_dir())
    try:
        main = snapshots / read_text(folder / "refs" / "main").strip()
    except InputError:
        main = snapshots
    if main in there:
        return main
    if len(there) == 1:
        return there[0]
    raise InputError(
        f"{folder} has {len(there)} snapshots, and none of them is known as main; "
        + (f"give one of them, {there[0]} for example" if there else "download the model again")
    )


_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
MAX_SENTENCE_CHARACTERS = 600
"""Longer ones are left out, so that hidden sentences can stand in many places."""


@functools.cache
def haystack_text(path: Path | None = None) -> str:
    """The shipped text (State of the Union addresses from 1900 on, CC0), or another file.

    Raises:
        InputError: the file cannot be read, or is no text.
    """
    if path is None:
        return lzma.decompress(HAYSTACK.read_bytes()).decode("utf-8")
    return read_text(path)


@functools.cache
def sentences(path: Path | None = None) -> tuple[str, ...]:
    """The haystack's sentences in order, up to MAX_SENTENCE_CHARACTERS each."""
    paragraphs = (" ".join(line.split()) for line in haystack_text(path).splitlines())
    found = (sentence for paragraph in paragraphs for sentence in _BOUNDARY.split(paragraph))
    return tuple(s for s in found if 0 < len(s) <= MAX_SENTENCE_CHARACTERS)
