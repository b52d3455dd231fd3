"""Strict parser of llama.cpp's older importance-matrix file, `.dat`.

Little-endian, without magic or padding: the number of entries; for each its name, calls and values
(mean square × calls); then the number of chunks and the name of the text (save_imatrix_legacy of
`tools/imatrix/imatrix.cpp`). Every length is checked before anything is read.

The format does not store how many tokens reached an expert, how many experts a stack has, and how
long a chunk was.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError

_SMALLEST_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4


@dataclass(frozen=True)
class LegacyEntry:
    """One weight as it is stored.

    Attributes:
        calls: chunks that the most used matrix saw, rounded up.
        values: mean square × calls of all matrices in order, F32.
    """

    calls: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class LegacyFile:
    """The whole file; `chunks` is None and `dataset` empty if an old version wrote it."""

    entries: dict[str, LegacyEntry]
    chunks: int | None
    dataset: str


class _Cursor:
    """Reads values from `content`, with checks of its size."""

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path, self.at = content, path, 0

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.path} is neither a GGUF file nor a readable legacy imatrix (.dat): {what} at "
            f"byte {self.at} of {len(self.content)}; collect the imatrix again"
        )

    def number(self, what: str, least: int) -> int:
        if self.left < 4:
            raise self.fail(f"it ends before {what}")
        (value,) = struct.unpack_from("<i", self.content, self.at)
        if value < least:
            raise self.fail(f"{what} is {value}")
        self.at += 4
        return int(value)

    def length(self, what: str, least: int, item_bytes: int) -> int:
        """A number of items of at least `item_bytes` each."""
        value = self.number(what, least)
        if value * item_bytes > self.left:
            raise self.fail(f"{what} is {value}, more than the file can hold,")
        return value

    def text(self, what: str, least: int) -> str:
        size = self.length(what, least, 1)
        raw = self.content[self.at : self.at + size]
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            text = ""
        if not text.isprintable() or (size and not text):
            raise self.fail(f"a name is not printable text ({what} is {size})")
        self.at += size
        return text

    def floats(self, count: int) -> NDArray[np.float32]:
        values = np.frombuffer(self.content, "<f4", count, self.at).astype(np.float32)
        if not (np.isfinite(values).all() and (values >= 0).all()):
            raise self.fail("a mean square that is negative or not finite, in the values")
        self.at += 4 * count
        return values


def parse_legacy(path: Path) -> LegacyFile:
    """Read the file at `path`.

    Raises:
        InputError: it is truncated, inconsistent, or another format.
    """
    cursor = _Cursor(path.read_bytes(), path)
    entries: dict[str, LegacyEntry] = {}
    for _ in range(cursor.length("the number of entries", 1, _SMALLEST_ENTRY_BYTES)):
        name = cursor.text("a name's length", 1)
        if name in entries:
            raise cursor.fail(f"{name} is listed twice")
        calls = cursor.number(f"the number of calls of {name}", 1)
        count = cursor.length(f"the number of values of {name}", 1, 4)
        entries[name] = LegacyEntry(calls, cursor.floats(count))
    if not cursor.left:  # an old writer ends here
        return LegacyFile(entries, None, "")
    chunks = cursor.number("the number of chunks", 0)
    dataset = cursor.text("the length of the dataset's name", 0)
    if cursor.left:
        raise cursor.fail(f"{cursor.left} bytes after its end")
    return LegacyFile(entries, chunks, dataset)
