"""Which files of a checkpoint a folder already has, and which of its files are not ours."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import Recipe
from quantkit.core.disk import free_bytes, is_same_disk
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.units import bytes_text
from quantkit.formats.logits_file import scored_positions
from quantkit.formats.tensor_types import BY_NAME
from quantkit.hub.downloads import STATE, Kept, RemoteFiles, cached_file, read_record
from quantkit.hub.reading import HubFile
from quantkit.models.remote import matches


@dataclass(frozen=True)
class Survey:
    """A folder compared with the files of a repository.

    Attributes:
        kept: verified before and unchanged since.
        present: here, but not hashed yet.
        missing: to be fetched, completely or from the end of a partial file.
        removed: ours, of earlier revisions: unchanged files, and unfinished ones.
        fetch_bytes: to be fetched, if all of `present` and of the Hub's cache has the right hash.
        free_bytes: free on the disk, plus the size of `removed`.
    """

    kept: tuple[Kept, ...]
    present: tuple[HubFile, ...]
    missing: tuple[HubFile, ...]
    removed: tuple[Path, ...]
    fetch_bytes: int
    free_bytes: int


def survey(remote: RemoteFiles, folder: Path) -> Survey:
    """Compare `folder` with `remote` by names and sizes; files of another origin are refused."""
    listing, record = remote.listing, read_record(folder)
    others = sorted(record.repositories - {listing.repository})
    if others:
        raise InputError(
            f"{folder} holds a download of {others[0]}; choose another folder with "
            f"{remote.chosen_with}, or delete that one"
        )
    listed = {file.name for file in listing.files}
    ours = {name for name, k in record.kept.items() if k.brought and k.is_unchanged(folder)}
    patterns = remote.removable
    obsolete = {n for n in ours - listed if patterns is None or matches(n, patterns)}
    places = (folder, folder / "additional_chat_templates")
    paths = chain.from_iterable(place.iterdir() for place in places if place.is_dir())
    names = {path.relative_to(folder).as_posix() for path in paths}
    foreign = sorted(n for n in names - listed - obsolete if matches(n, remote.foreign))
    if foreign:
        more = f" and {len(foreign) - 1} more files" if len(foreign) > 1 else ""
        raise InputError(
            f"{folder} holds {foreign[0]}{more}, not of {listing.repository} at "
            f"{listing.commit[:12]}, which would be read as part of the checkpoint: move them "
            f"away, or choose another folder with {remote.chosen_with}"
        )
    kept: list[Kept] = []
    present: list[HubFile] = []
    missing: list[HubFile] = []
    for file in remote.files:
        known, path = record.kept.get(file.name), folder / file.name
        if not os.path.lexists(path) or is_outdated(known, file, folder):
            missing.append(file)
        elif known is not None and known.is_of(file) and known.is_unchanged(folder):
            kept.append(known)
        elif is_brought(known) or _size(path) == file.size_bytes:
            present.append(file)
        else:
            raise not_ours(path, remote)
    partials = {partial_path(folder, file): file for file in remote.files}
    fetch = sum(
        f.size_bytes - min(_size(p), f.size_bytes)
        for p, f in partials.items()
        if f in missing and cached_file(listing, f) is None
    )
    leftovers = (p for p in (folder / STATE).rglob("*.partial") if p not in partials)
    removed = (*(folder / name for name in sorted(obsolete)), *leftovers)
    free = free_bytes(folder) + sum(map(_size, removed))
    return Survey(tuple(kept), tuple(present), tuple(missing), removed, fetch, free)


def is_brought(known: Kept | None) -> bool:
    """Whether quantkit downloaded the file. A changed one is set aside and never removed."""
    return known is not None and known.brought


def is_outdated(known: Kept | None, file: HubFile, folder: Path) -> bool:
    """Whether the file here is ours, and unchanged of an earlier revision, or a link to nothing."""
    if known is None or not known.brought:
        return False
    if is_lost(folder / file.name):
        return True
    return known.identity != file.identity and known.is_unchanged(folder)


def is_lost(path: Path) -> bool:
    """Whether it is a link to a file that is gone: the Hub's cache was emptied."""
    return path.is_symlink() and not path.exists()


def not_ours(path: Path, remote: RemoteFiles) -> InputError:
    """The error for a file of another origin in the place of a repository's file."""
    listing = remote.listing
    return InputError(
        f"{path} is not the file that {listing.repository} has at {listing.commit[:12]}, and "
        "quantkit did not download it: move it away, or choose another folder with "
        f"{remote.chosen_with}"
    )


def partial_path(folder: Path, file: HubFile) -> Path:
    """Named after the content, so that bytes of two revisions never meet in one file."""
    content = file.identity.partition(":")[2][:16]
    return folder / STATE / f"{file.name}.{content}.partial"


def _size(path: Path) -> int:
    """Bytes of a file; 0 if it does not exist, because another run may have removed it."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


HEADER_BYTES = 16 << 20
"""Room for a GGUF file's header: a vocabulary of 131072 with merges takes about 6 MiB."""
PRESET_MARGIN_BITS = 1.5
"""Bits per weight of a preset beyond those of its type: some tensors get larger types, and so do
rows that are no multiple of the block size. 0.3 to 0.9 are usual; 1.42 (IQ1_S) is the most for
Nemotron-3-Super, where half of the weights have such rows."""


@dataclass(frozen=True)
class SpaceNeeded:
    """Bytes that are still to be written to one disk."""

    download_bytes: int
    level_bytes: int = 0
    logits_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.download_bytes + self.level_bytes + self.logits_bytes


def space_needed(
    download_bytes: int,
    elements: int,
    vocabulary: int,
    recipe: Recipe,
    limit: int | None = None,
) -> SpaceNeeded:
    """The disk space of what a build leaves; for presets an upper bound.

    A study's hidden states are not in it: they go when it ends, and it asks for their room itself.

    Args:
        elements: weights of the model.
        limit: bytes of the target for weights: larger levels are not built. None if no target is
            known; levels that use all of a target's memory are then left out.
    """
    largest = int(1.01 * BY_NAME["Q8_0"].size_bytes(elements))  # with what stays F32
    sizes = [_level_bytes(level, elements, limit) for level in recipe.levels]
    levels = sum(min(size, largest) + HEADER_BYTES for size in sizes if size is not None)
    positions = recipe.divergence.chunks * len(scored_positions(recipe.divergence.chunk_tokens))
    logits = 2 * vocabulary * positions + HEADER_BYTES if positions else 0  # of 16 bits
    return SpaceNeeded(download_bytes, levels, logits)


def _level_bytes(level: LevelRecipe, elements: int, limit: int | None) -> int | None:
    """Upper bound of a level's size; None if it is not built, or if the bound is not known."""
    if level.takes_all:
        return limit
    bits, margin = level.bits(elements), 0.0
    if level.preset is not None:  # the bits of its type; of IQ3_M, of the largest IQ3 type
        family = level.preset.partition("_")[0]
        named = [kind for kind in BY_NAME.values() if level.preset.startswith(kind.name)]
        kinds = named or [kind for kind in BY_NAME.values() if kind.name.startswith(family)]
        bits, margin = max(kind.bits_per_weight for kind in kinds), PRESET_MARGIN_BITS
    assert bits is not None
    if limit is None:
        return int(elements * (bits + margin) / 8)
    if elements * bits / 8 > limit:
        return None
    return min(int(elements * (bits + margin) / 8), limit)


def check_build_space(needed: SpaceNeeded, free: int, home: Path, out: Path) -> None:
    """As `check_space`, of a build in `out` of the model in `home`, whose disk has `free` bytes.

    Each on its own disk has the base's logits.
    """
    if is_same_disk(home, out):
        check_space(needed, free, out)
    else:
        check_space(replace(needed, level_bytes=0), free, home, "--study")
        check_space(replace(needed, download_bytes=0), free_bytes(out), out)


def check_space(needed: SpaceNeeded, free: int, folder: Path, chosen_with: str = "--out") -> None:
    """Raise EnvironmentFault if the disk has less space than `needed`: `free` bytes."""
    missing = needed.total_bytes - free
    if missing <= 0:
        return
    parts = (
        (needed.download_bytes, "to download"),
        (needed.level_bytes, "for the levels"),
        (needed.logits_bytes, "for base.logits"),
    )
    words = ", ".join(f"{bytes_text(size)} {what}" for size, what in parts if size)
    raise EnvironmentFault(
        f"the disk of {folder} has {bytes_text(free)} free, but {bytes_text(needed.total_bytes)} "
        f"are needed ({words}), {bytes_text(missing)} more; make room, or choose a folder on "
        f"another disk with {chosen_with}"
    )
