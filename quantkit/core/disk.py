"""Room on a disk: how much is free, and what is said where it is too little."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantkit.core.errors import DiskFullError
from quantkit.core.units import bytes_text

FULL = (errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 512  # of st_blocks: POSIX, sys/stat.h
REMOVABLE = ("*.work", ".work/*", "levels/*")
"""In a folder that quantkit writes to: unfinished work on other files and stages, and levels."""
SHOWN = 4


def free_bytes(folder: Path) -> int:
    """Free space of the disk that holds `folder`, or will hold it."""
    return shutil.disk_usage(_nearest(folder)).free


def is_same_disk(one: Path, other: Path) -> bool:
    """Whether one disk holds both folders, or will hold them."""
    return _nearest(one).stat().st_dev == _nearest(other).stat().st_dev


def _nearest(folder: Path) -> Path:
    """The folder, or the nearest around it that there is."""
    places = (folder.absolute(), *folder.absolute().parents)
    return next(place for place in places if place.exists())


def taken_bytes(path: Path) -> int:
    """What a file, or all files in a folder, take on the disk; a hole takes nothing."""
    files = (Path(place, name) for place, _, names in os.walk(path) for name in names)
    return sum(
        file.lstat().st_blocks * BLOCK_BYTES for file in (path, *files) if os.path.lexists(file)
    )


def check_room(sizes: Iterable[tuple[Path, int]], folder: Path) -> None:
    """See that files in `folder` can grow to their sizes in bytes; all may have a part already.

    Raises:
        DiskFullError: the disk has not that much free.
    """
    needed = sum(max(size - taken_bytes(path), 0) for path, size in sizes)
    if needed > free_bytes(folder):
        raise DiskFullError(f"the disk of {folder} has too little room", needed_bytes=needed)


def disk_full(stage: str, place: Path, needed_bytes: int | None) -> DiskFullError:
    """The error for a disk that is full.

    Args:
        place: the file that is written, or the folder.
    """
    folder = place if place.is_dir() else place.parent
    needed = "" if needed_bytes is None else f"{bytes_text(needed_bytes)} are still needed, "
    own = (f"{place.name}.work", stage.replace(":", "."), stage.partition(":")[2])
    found = sorted(_removable(folder, own), reverse=True)[:SHOWN]
    names = ", ".join(f"{path} ({bytes_text(size)})" for size, path in found)
    advice = f"; what can be deleted, and is made again when it is wanted: {names}" if names else ""
    return DiskFullError(
        f"{stage}: the disk of {folder} is full: {needed}{bytes_text(free_bytes(folder))} free; "
        f"make room, or choose another disk with --out, then run again{advice}",
        stage=stage,
        needed_bytes=needed_bytes,
    )


def _removable(folder: Path, own: tuple[str, ...]) -> Iterator[tuple[int, Path]]:
    for pattern in REMOVABLE:
        for path in folder.glob(pattern):
            if path.name not in own:
                yield taken_bytes(path), path
