"""llama.cpp's older importance-matrix file, `.dat`: a strict parser of its bytes.

Little-endian, no magic, no padding: the number of entries; of each its name, its calls, its
values (mean square × calls); then the chunks of the run and the name of its text
(`tools/imatrix/imatrix.cpp`, save_imatrix_legacy). Every length is held against the bytes that are
there before anything is read.

What the format does not say: how many tokens reached which expert, how many experts a stack has,
how long a chunk was.
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
        calls: chunks that the fullest matrix saw, rounded up.
        values: mean square × calls, all matrices one after the other; F32.
    """

    calls: int
    values: NDArray[np.float32]


@dataclass(frozen=True)
class LegacyFile:
    """The whole file; `chunks` is None and `dataset` empty where an old writer left them out."""

    entries: dict[str, LegacyEntry]
    chunks: int | None
    dataset: str


class _Cursor:
    """Reads from `content` and refuses to go past its end."""

    def __init__(self, content: bytes, path: Path) -> None:
        self.content, self.path, self.at = content, path, 0

    @property
    def left(self) -> int:
        return len(self.content) - self.at

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.path} is not a GGUF file, and no readable legacy imatrix (.dat) either: {what} "
            f"at byte {self.at} of {len(self.content)}; collect the imatrix again"
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
        """A count of items of at least `item_bytes` each, which must be there."""
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
            raise self.fail(f"a name that is no text ({what} is {size})")
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
        InputError: it is cut short, contradicts itself, or is something else.
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
