"""Tensors that a finished file holds already, so that they can be copied instead of made again."""

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
    """A GGUF file, with its size and its time of change as they were when it was finished."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class ReadyTensor:
    """The bytes of a tensor in an open finished file, from `offset` on."""

    source: FileBytes
    finished: FinishedFile
    offset: int

    def copy_to(self, start: int, stop: int, descriptor: int, at: int) -> bool:
        """Copy the tensor's bytes [start, stop) to byte `at` of the open file `descriptor`.

        Returns:
            Whether they can be relied on: False where something has written to the finished file,
            and the same bytes must be made after all.
        """
        if not _unchanged(self.source, self.finished):
            return False
        try:
            self.source.copy_to(self.offset + start, stop - start, descriptor, at)
        except InputError:  # cut short meanwhile
            return False
        return _unchanged(self.source, self.finished)


def ready_tensors(
    files: Sequence[FinishedFile], wanted: Sequence[TensorInfo]
) -> dict[str, ReadyTensor]:
    """Name → bytes of those tensors of `wanted` that `files` hold in the same shape and type.

    A file that is gone, or is no longer what it was when it was finished, is passed over. The
    others stay open, so replacing or deleting them does not matter any more.
    """
    found: dict[str, ReadyTensor] = {}
    by_name = {info.name: info for info in wanted}
    for finished in files:
        try:
            source = FileBytes(finished.path)
            stored = GGUFFile(finished.path).stored
            same_file = os.path.samestat(finished.path.stat(), source.stat())
        except (OSError, InputError):  # gone, or something else by now
            continue
        if not same_file or not _unchanged(source, finished):
            continue
        for name, at in stored.items():
            if name not in found and by_name.get(name) == at.info:
                found[name] = ReadyTensor(source, finished, at.offset)
    return found


def _unchanged(source: FileBytes, finished: FinishedFile) -> bool:
    now = source.stat()
    return (now.st_size, now.st_mtime_ns) == (finished.size_bytes, finished.modified_ns)
