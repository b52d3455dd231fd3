"""A recipe's calibration sources: shipped texts, local files and folders, datasets of the Hub.

The cache of datasets has a folder OWNER--NAME/COMMIT/ for each; a commit that is complete there
needs no network.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from pydantic import TypeAdapter

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.documents import Strict, read_yaml, validated
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import write_json
from quantkit.core.parsing import MOST_JSON_BYTES, read_bounded
from quantkit.core.paths import cache_folder, resource
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import bytes_text
from quantkit.hub.downloads import STATE, RemoteFiles, is_whole
from quantkit.hub.reading import Hub, HubFile, Listing, is_commit
from quantkit.models.download import download
from quantkit.study.calibration.texts import ENDINGS, CalibrationSource

LIMIT_BYTES = 1 << 30
"""Limit for one dataset, of which a calibration reads a few megabytes."""
_SCHEME = "hf://"
_NAME = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_REPOSITORY = re.compile(f"(?!.*(?:--|[.][.])){_NAME}/{_NAME}")
_REVISION = r"refs/(?:convert/[\w.-]+|pr/[0-9]+)(?=/|$)|[^/@]+"
"""huggingface_hub accepts these two kinds of names with slashes; others need %2F."""
_ADDRESS = re.compile(f"hf://datasets/([^/@]+/[^/@]+)(?:@({_REVISION}))?(?:/(.+))?")
_SAFE_NAME = re.compile(r"(?:(?!\.{1,2}(?:/|$))[^/\\\x00-\x1f\x7f-\x9f]+(?:/(?!$)|$))+")
"""Excludes paths to other folders and control characters."""
_CARD = "README.md"
_LISTING = "listing.json"
_SHOWN_FILES = 5


class ShippedText(Strict):
    """An entry of calibration/sources.yaml; `licence` is an SPDX expression."""

    licence: str
    origin: str
    sha256: str


def local_sources(recipe: ImatrixRecipe) -> tuple[CalibrationSource, ...]:
    """The sources on this disk; of datasets, only the addresses are checked.

    Raises:
        InputError: a local source does not exist, or a dataset's address is malformed.
    """
    for name in filter(is_dataset, recipe.sources):
        DatasetAddress.parse(name)
    return tuple(_local_source(name) for name in recipe.sources if not is_dataset(name))


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
    shipped, file, path = shipped_texts(), shipped_name(name), Path(name)
    if file is not None:
        shipped_path = resource("calibration") / file
        return CalibrationSource(name, (shipped_path,), "quantkit", shipped[file].licence)
    if path.is_file():
        return CalibrationSource(name, (path,), "disk", None)
    if not path.is_dir():
        raise InputError(
            f"no calibration text {name!r}: give a file, a folder, hf://datasets/OWNER/NAME, or "
            f"one of {', '.join(shipped)}"
        )
    below = (found.relative_to(path) for found in path.rglob("*") if found.suffix in ENDINGS)
    files = tuple(path / found for found in sorted(below) if (path / found).is_file())
    if not files:
        raise InputError(f"no calibration text in the folder {path}: {', '.join(ENDINGS)} are read")
    return CalibrationSource(name, files, "disk", None)


def is_dataset(name: str) -> bool:
    """Whether a recipe's source is hf://datasets/OWNER/NAME[@REVISION][/PATH]."""
    return name.startswith(_SCHEME)


@dataclass(frozen=True)
class DatasetAddress:
    """A dataset OWNER/NAME, or the file or folder `path` in it; `revision` is None for `main`."""

    repository: str
    revision: str | None
    path: str

    @classmethod
    def parse(cls, name: str) -> DatasetAddress:
        """Parse a source in the syntax of huggingface_hub's HfFileSystem.

        Raises:
            InputError: it is malformed.
        """
        match = _ADDRESS.fullmatch(name.removesuffix("/"))
        repository, revision, path = match.groups() if match else ("", None, None)
        if not _REPOSITORY.fullmatch(repository) or (path and not _SAFE_NAME.fullmatch(path)):
            raise InputError(
                f"invalid dataset {name!r}: expected hf://datasets/OWNER/NAME[@REVISION][/PATH]"
            )
        return cls(repository, unquote(revision) if revision else None, path or "")

    def at(self, path: str) -> str:
        """The source that names `path` in this dataset."""
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{_SCHEME}datasets/{self.repository}{revision}/{path}"


def fetch_dataset(
    name: str, hub: Callable[[], Hub], cache: Path, progress: Progress
) -> CalibrationSource:
    """The dataset that a source names, downloaded to the folder `cache` unless it is there.

    `hub` creates the client; it is not called for a commit that is in the cache.

    Raises:
        InputError: no such dataset, revision or path, no access, no readable file, or too large.
        EnvironmentFault: the network, the Hub or the disk failed.
    """
    address = DatasetAddress.parse(name)
    listing = _whole_listing(address, cache) or _fetch(address, hub(), cache, progress)
    folder = _folder(listing, cache)
    return CalibrationSource(
        name=name,
        files=tuple(folder / file.name for file in chosen_files(listing, address)),
        origin=f"{_SCHEME}datasets/{listing.repository}@{listing.commit}",
        licence=listing.licence,
    )


def _fetch(address: DatasetAddress, hub: Hub, cache: Path, progress: Progress) -> Listing:
    listing = hub.listing(address.repository, address.revision, progress.note, kind="dataset")
    files, folder = chosen_files(listing, address), _folder(listing, cache)
    wanted = RemoteFiles(listing=listing, files=files, chosen_with="XDG_CACHE_HOME")
    progress.note(
        f"{listing.repository} at {listing.commit[:12]}: {len(files)} files of "
        f"{bytes_text(wanted.size_bytes)}, licence: {listing.licence or 'not stated'}"
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot create the folder {folder} for a dataset: {error.strerror}; choose another "
            "cache with XDG_CACHE_HOME"
        ) from None
    download(wanted, hub, folder, progress)
    write_json(folder / STATE / _LISTING, asdict(listing))
    return listing


def chosen_files(listing: Listing, address: DatasetAddress) -> tuple[HubFile, ...]:
    """The files of a dataset that are read, sorted by name.

    Hidden files are skipped, and so is the dataset card, unless `address` names it.

    Raises:
        InputError: nothing is at the path, no file is readable, a name is unsafe, or the files are
            too large together.
    """
    path = address.path
    below = [f for f in listing.files if not path or f"{f.name}/".startswith(f"{path}/")]
    if not below:
        raise InputError(
            f"the dataset {listing.repository} has no {path!r} in {listing.commit[:12]}; it has "
            f"{_shown(listing.files)}"
        )
    read = sorted((file for file in below if _is_read(file.name, path)), key=lambda f: f.name)
    if not read:
        where = f"at {path!r} " if path else ""
        raise InputError(
            f"the dataset {listing.repository} {where}has no {', '.join(ENDINGS)}, but "
            f"{_shown(below)}; if the Hub shows its rows, it has them as Parquet at "
            f"hf://datasets/{listing.repository}@refs/convert/parquet"
        )
    unsafe = [file.name for file in read if not _SAFE_NAME.fullmatch(file.name)]
    if unsafe:
        raise InputError(
            f"the dataset {listing.repository} has a file with the unsafe name {unsafe[0]!r}; give "
            f"the path of others, such as {address.at('FOLDER')}"
        )
    size = sum(file.size_bytes for file in read)
    if size > LIMIT_BYTES:
        smallest = min(read, key=lambda file: file.size_bytes)
        raise InputError(
            f"the dataset {listing.repository} is too large: {_shown(read)}, together "
            f"{bytes_text(size)} (limit {bytes_text(LIMIT_BYTES)}); "
            + (
                f"give the path of some, such as {address.at(smallest.name)}"
                if smallest.size_bytes <= LIMIT_BYTES
                else "choose a dataset in smaller files"
            )
        )
    return tuple(read)


def _is_read(name: str, path: str) -> bool:
    pure = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in pure.parts)
    return pure.suffix in ENDINGS and not hidden and (name != _CARD or path == _CARD)


def _shown(files: Sequence[HubFile]) -> str:
    shown = ", ".join(f"{f.name!r} ({bytes_text(f.size_bytes)})" for f in files[:_SHOWN_FILES])
    more = len(files) - _SHOWN_FILES
    return (shown or "no files") + (f" and {more} more" if more > 0 else "")


def _whole_listing(address: DatasetAddress, cache: Path) -> Listing | None:
    """The recorded listing of a commit whose chosen files are all verified in the cache."""
    if not is_commit(address.revision or ""):
        return None
    folder = cache / address.repository.replace("/", "--") / str(address.revision)
    try:
        content = read_bounded(folder / STATE / _LISTING, MOST_JSON_BYTES)
        listing = TypeAdapter(Listing).validate_json(content)
    except (InputError, ValueError):
        return None
    if (listing.repository, listing.commit) != (address.repository, address.revision):
        return None
    names = [file.name for file in chosen_files(listing, address)]
    return listing if is_whole(folder, names) else None


def _folder(listing: Listing, cache: Path) -> Path:
    """The dataset's folder; its name comes from the Hub, so it is validated."""
    if not (_REPOSITORY.fullmatch(listing.repository) and is_commit(listing.commit)):
        raise EnvironmentFault(
            f"the Hub returned the invalid dataset {listing.repository!r} at {listing.commit!r}; "
            "check HF_ENDPOINT"
        )
    return cache / listing.repository.replace("/", "--") / listing.commit
