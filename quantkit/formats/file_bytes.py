"""Reads a file by position; only the requested bytes are in memory.

The file is not mapped: mapped pages count as resident memory of the process until the system takes
them back (ADR 7).
"""

from __future__ import annotations

import errno
import mmap
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.files import open_file

_MAX_CALL_BYTES = 1 << 30  # Linux moves at most 2^31 - 4096 bytes per call
_COPY_BYTES = 4 << 20
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""Errors of copy_file_range between or on some file systems, and in some containers."""


class FileBytes:
    """The bytes of the file at `path`; thread-safe.

    Raises:
        OSError: the file cannot be opened, or is none, as in `open_file`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open_file(path)
        weakref.finalize(self, self._file.close)
        self._descriptor = self._file.fileno()
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Bytes [offset, offset + size) as a new array; see `read_into`."""
        out = np.empty(size, np.uint8)
        self.read_into(offset, out)
        return out

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill the contiguous array `out` with the bytes from `offset` on.

        Raises:
            InputError: the file is shorter; it was truncated after it was opened.
        """
        view = out.data.cast("B")
        while view:
            got = os.preadv(self._descriptor, [view[:_MAX_CALL_BYTES]], offset)
            if got == 0:
                raise InputError(
                    f"{self.path} ends at byte {offset}, {len(view)} bytes too early: it was "
                    "modified while it was read; download or convert it again"
                )
            view, offset = view[got:], offset + got

    def map(self) -> mmap.mmap:
        """The whole file, for reading; ValueError if it is empty."""
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)

    def state(self) -> tuple[int, int]:
        """(size, modification time in ns) of the open file, whoever has its name by now."""
        now = os.fstat(self._descriptor)
        return now.st_size, now.st_mtime_ns

    def copy_to(self, offset: int, size: int, descriptor: int, at: int) -> None:
        """Copy bytes [offset, offset + size) to byte `at` of the open file `descriptor`.

        The system copies them, or lets both files share them, if it can.

        Raises:
            InputError: the file is shorter; it was truncated after it was opened.
        """
        end = offset + size
        while offset < end:
            count = min(end - offset, _MAX_CALL_BYTES)
            try:
                moved = os.copy_file_range(self._descriptor, descriptor, count, offset, at)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                moved = 0
            if not moved:  # also at the end of the file, which `read` reports
                data = self.read(offset, min(count, _COPY_BYTES))
                moved = os.pwrite(descriptor, data.data, at)
            offset, at = offset + moved, at + moved
