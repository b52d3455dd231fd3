"""Positioned reads from one file: what is asked for is all that is ever in memory.

Not a mapping: the pages of a mapped file count as this process's resident memory until the system
takes them back, so converting 241 GB would look like a process as large as the machine. ADR 7 has
the numbers.
"""

from __future__ import annotations

import errno
import os
import weakref
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError

_MOST_AT_ONCE = 1 << 30  # Linux moves at most 2^31 - 4096 bytes in one call
_COPIED_AT_ONCE = 4 << 20
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
"""What copy_file_range says between file systems, on some of them, and in some containers."""


class FileBytes:
    """The bytes of the file at `path`; safe to read from several threads.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)
        self.size_bytes = os.fstat(self._descriptor).st_size

    def read(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Bytes [offset, offset + size) as a new array; see `read_into`."""
        out = np.empty(size, np.uint8)
        self.read_into(offset, out)
        return out

    def read_into(self, offset: int, out: NDArray[np.uint8]) -> None:
        """Fill the contiguous array `out` with the bytes from `offset` on.

        Raises:
            InputError: the file ends before; it was cut short after it was opened.
        """
        view = out.data.cast("B")
        while view:
            got = os.preadv(self._descriptor, [view[:_MOST_AT_ONCE]], offset)
            if got == 0:
                raise InputError(
                    f"{self.path} ends at byte {offset}, {len(view)} bytes before it should: it "
                    "was changed while it was read; download or convert it again"
                )
            view, offset = view[got:], offset + got

    def stat(self) -> os.stat_result:
        """Of the open file, whatever has its name by now."""
        return os.fstat(self._descriptor)

    def copy_to(self, offset: int, size: int, descriptor: int, at: int) -> None:
        """Copy bytes [offset, offset + size) to byte `at` of the open file `descriptor`.

        The system moves them, or lets both files share them, where it can.

        Raises:
            InputError: the file ends before; it was cut short after it was opened.
        """
        end = offset + size
        while offset < end:
            count = min(end - offset, _MOST_AT_ONCE)
            try:
                moved = os.copy_file_range(self._descriptor, descriptor, count, offset, at)
            except OSError as error:
                if error.errno not in _CANNOT_COPY:
                    raise
                moved = 0
            if not moved:  # at the end of the file too, which `read` then tells
                data = self.read(offset, min(count, _COPIED_AT_ONCE))
                moved = os.pwrite(descriptor, data.data, at)
            offset, at = offset + moved, at + moved
