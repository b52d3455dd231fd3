"""The disk space that a download and a build need, checked before the first byte."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import Recipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.units import bytes_text
from quantkit.formats.logits_file import scored_positions
from quantkit.formats.tensor_types import BY_NAME

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
    base_bytes: int = 0
    level_bytes: int = 0
    logits_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.download_bytes + self.base_bytes + self.level_bytes + self.logits_bytes


def space_needed(
    download_bytes: int, elements: int, vocabulary: int, recipe: Recipe, limit: int | None = None
) -> SpaceNeeded:
    """The disk space of a whole build; for presets an upper bound.

    Args:
        download_bytes: still to be downloaded.
        elements: weights of the model.
        vocabulary: number of tokens.
        limit: bytes of the target for weights: larger levels are not built. None if no target is
            known; levels that use all of a target's memory are then left out.
    """
    largest = int(1.01 * BY_NAME["Q8_0"].size_bytes(elements))  # with what stays F32
    sizes = [_level_bytes(level, elements, limit) for level in recipe.levels]
    levels = sum(min(size, largest) + HEADER_BYTES for size in sizes if size is not None)
    base = BY_NAME[recipe.convert.base_type].size_bytes(elements) + HEADER_BYTES
    positions = recipe.divergence.chunks * len(scored_positions(recipe.divergence.chunk_tokens))
    logits = 2 * vocabulary * positions + HEADER_BYTES if positions else 0  # of 16 bits
    return SpaceNeeded(download_bytes, base, levels, logits)


def _level_bytes(level: LevelRecipe, elements: int, limit: int | None) -> int | None:
    """Upper bound of a level's size; None if it is not built, or if the bound is not known."""
    if level.takes_all:
        return limit
    bits, margin = level.bits(elements), 0.0
    if level.preset is not None:
        bits, margin = _preset_bits(level.preset), PRESET_MARGIN_BITS
    assert bits is not None
    if limit is None:
        return int(elements * (bits + margin) / 8)
    if elements * bits / 8 > limit:
        return None
    return min(int(elements * (bits + margin) / 8), limit)


def _preset_bits(preset: str) -> float:
    """Bits per weight of the preset's type; for IQ3_M, of the largest IQ3 type."""
    named = [kind for kind in BY_NAME.values() if preset.startswith(kind.name)]
    family = preset.partition("_")[0]
    kinds = named or [kind for kind in BY_NAME.values() if kind.name.startswith(family)]
    return max(kind.bits_per_weight for kind in kinds)


def check_space(needed: SpaceNeeded, free: int, folder: Path, chosen_with: str = "--out") -> None:
    """Raise if the disk has less free space than `needed`.

    Args:
        free: bytes.
        chosen_with: the option or variable that chooses the folder.

    Raises:
        EnvironmentFault: names the size of each part and how much is missing.
    """
    missing = needed.total_bytes - free
    if missing <= 0:
        return
    parts = (
        (needed.download_bytes, "to download"),
        (needed.base_bytes, "for base.gguf"),
        (needed.level_bytes, "for the levels"),
        (needed.logits_bytes, "for base.logits"),
    )
    words = ", ".join(f"{bytes_text(size)} {what}" for size, what in parts if size)
    raise EnvironmentFault(
        f"the disk of {folder} has {bytes_text(free)} free, but {bytes_text(needed.total_bytes)} "
        f"are needed ({words}), {bytes_text(missing)} more; make room, or choose a folder on "
        f"another disk with {chosen_with}"
    )


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds `folder`, or will hold it."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
