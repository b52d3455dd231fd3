"""Hidden states between two windows, in files: the sweep holds only a batch of them in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F32Array = NDArray[np.float32]


def row_bytes(width: int, *, differences: bool = False) -> int:
    """What one token's hidden state takes on the disk."""
    return _row_type(width, differences).itemsize


def _row_type(width: int, differences: bool) -> np.dtype[np.void]:
    if differences:
        return np.dtype([("scale", "<f4"), ("of", "<f2", (width,))])
    return np.dtype([("of", "<f4", (width,))])


class HiddenStates:
    """Hidden states of texts of `rows` tokens before each window; two files take turns.

    A window reads one file and writes the other, so one that was interrupted begins again.

    Args:
        differences: only the difference from other states, which `read` and `write` are given, is
            kept: in F16 with a scale for each row, half the size.
    """

    def __init__(
        self, folder: Path, name: str, texts: int, rows: int, width: int, *, differences: bool
    ) -> None:
        self.differences = differences
        self._row, self._rows, self._texts = _row_type(width, differences), rows, texts
        self.paths = [folder / f"{name}.{turn}" for turn in (0, 1)]
        self._files: dict[int, int] = {}

    @property
    def size_bytes(self) -> int:
        """Of both files."""
        return 2 * self._texts * self._rows * self._row.itemsize

    def read(
        self, window: int, text: int, start: int, stop: int, other: F32Array | None = None
    ) -> F32Array:
        """Rows [start, stop) of a text before `window`, F32 (rows, width)."""
        size = (stop - start) * self._row.itemsize
        raw = os.pread(self._file(window), size, self._at(text, start))
        found = np.frombuffer(raw, self._row)
        if len(found) != stop - start:
            raise OSError(f"{self.paths[window % 2]} ends before row {stop} of text {text}")
        if not self.differences:
            return np.asarray(found["of"], np.float32)
        assert other is not None
        return np.asarray(found["of"].astype(np.float32) * found["scale"][:, None] + other)

    def write(
        self, window: int, text: int, start: int, rows: F32Array, other: F32Array | None = None
    ) -> None:
        """Keep `rows` of a text, from row `start` on, for `window`."""
        kept = np.empty(len(rows), self._row)
        if self.differences:
            assert other is not None
            change = rows - other
            kept["scale"] = np.abs(change).max(axis=1)
            unit = np.where(kept["scale"] > 0, kept["scale"], np.float32(1))
            kept["of"] = change / unit[:, None]
        else:
            kept["of"] = rows
        left, at = memoryview(kept.tobytes()), self._at(text, start)
        while left:
            written = os.pwrite(self._file(window), left, at)
            left, at = left[written:], at + written

    def sync(self, window: int) -> None:
        """What was written for `window` is on the disk when this returns."""
        os.fsync(self._file(window))

    def close(self) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _at(self, text: int, row: int) -> int:
        return (text * self._rows + row) * self._row.itemsize

    def _file(self, window: int) -> int:
        turn = window % 2
        if turn not in self._files:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            self._files[turn] = os.open(self.paths[turn], flags, 0o666)
        return self._files[turn]
