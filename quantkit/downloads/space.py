"""Disk space: what a download and the build after it need, told before the first byte."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.errors import EnvironmentFault
from quantkit.quant_types import BY_NAME
from quantkit.sizes import bytes_text

HEADER_BYTES = 16 << 20
"""Room for a GGUF file's header: a vocabulary of 131072 with merges takes about 6 MiB."""


@dataclass(frozen=True)
class SpaceNeeded:
    """Bytes that are still to be written to one disk."""

    download_bytes: int
    base_bytes: int = 0
    level_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        return self.download_bytes + self.base_bytes + self.level_bytes


def space_needed(
    download_bytes: int,
    elements: int,
    base_type: str,
    bits_per_weight: Sequence[float | None],
    limit_bytes: int | None = None,
) -> SpaceNeeded:
    """The disk space of a whole build.

    Args:
        download_bytes: still to come.
        elements: weights of the model.
        base_type: of base.gguf.
        bits_per_weight: of each level; None for one that takes all of the target's memory.
        limit_bytes: that memory; larger levels are not built. None where no target is known:
            levels that depend on it are left out.
    """
    largest = BY_NAME["Q8_0"].size_bytes(elements)
    levels = 0
    for bits in bits_per_weight:
        size = limit_bytes if bits is None else int(elements * bits / 8)
        if size is not None and (limit_bytes is None or size <= limit_bytes):
            levels += min(size, largest) + HEADER_BYTES
    base = BY_NAME[base_type].size_bytes(elements) + HEADER_BYTES
    return SpaceNeeded(download_bytes, base, levels)


def check_space(needed: SpaceNeeded, free: int, folder: Path, chosen_with: str = "--out") -> None:
    """Raise when the disk has less than `needed`.

    Args:
        free: bytes.
        chosen_with: the option or variable that chooses the folder.

    Raises:
        EnvironmentFault: with what each part takes and how much is missing.
    """
    missing = needed.total_bytes - free
    if missing <= 0:
        return
    parts = (
        (needed.download_bytes, "to download"),
        (needed.base_bytes, "for base.gguf"),
        (needed.level_bytes, "for the levels"),
    )
    words = ", ".join(f"{bytes_text(size)} {what}" for size, what in parts if size)
    raise EnvironmentFault(
        f"the disk of {folder} has {bytes_text(free)} free, but {bytes_text(needed.total_bytes)} "
        f"are needed ({words}): {bytes_text(missing)} too little; make room, or choose a folder on "
        f"another disk with {chosen_with}"
    )


def free_bytes(folder: Path) -> int:
    """Free space of the disk that `folder` is or will be on."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
