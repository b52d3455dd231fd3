"""Tensors of finished files, which can be copied instead of encoded again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.core.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.tensors import TensorInfo


@dataclass(frozen=True)
class FinishedFile:
    """A GGUF file, with its size and modification time when it was finished."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class ReusableTensor:
    """A tensor's bytes in an open finished file, from `offset` on."""

    source: FileBytes
    finished: FinishedFile
    offset: int

    def copy_to(self, start: int, stop: int, descriptor: int, at: int) -> bool:
        """Copy the tensor's bytes [start, stop) to byte `at` of the open file `descriptor`.

        Returns:
            False if the finished file was modified: the bytes must be encoded after all.
        """
        if not _unchanged(self.source, self.finished):
            return False
        try:
            self.source.copy_to(self.offset + start, stop - start, descriptor, at)
        except InputError:  # truncated in the meantime
            return False
        return _unchanged(self.source, self.finished)


def reusable_tensors(
    files: Sequence[FinishedFile], wanted: Sequence[TensorInfo]
) -> dict[str, ReusableTensor]:
    """The tensors of `wanted` that `files` hold in the same shape and type, by name.

    A file that is gone or was modified is skipped. The others stay open, so replacing or deleting
    them later does no harm.
    """
    found: dict[str, ReusableTensor] = {}
    by_name = {info.name: info for info in wanted}
    for finished in files:
        try:
            source = FileBytes(finished.path)
            stored = GGUFFile(finished.path).stored
            same_file = os.path.samestat(finished.path.stat(), source.stat())
        except (OSError, InputError):  # gone, or not this GGUF file any more
            continue
        if not same_file or not _unchanged(source, finished):
            continue
        for name, at in stored.items():
            if name not in found and by_name.get(name) == at.info:
                found[name] = ReusableTensor(source, finished, at.offset)
    return found


def _unchanged(source: FileBytes, finished: FinishedFile) -> bool:
    now = source.stat()
    return (now.st_size, now.st_mtime_ns) == (finished.size_bytes, finished.modified_ns)
