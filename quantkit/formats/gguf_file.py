"""Reads GGUF files, finds the shards of a model, and tensors to copy from finished files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import parse_header
from quantkit.formats.tensors import TensorInfo

_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GGUFFile:
    """One GGUF file: `metadata`, and `stored` by tensor name in file order.

    The header is parsed at once; data is read on demand.

    Raises:
        InputError: the file is missing, not GGUF, truncated, or inconsistent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.bytes = FileBytes(path)
            mapping = self.bytes.map()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise InputError(
                f"cannot read {path}: {reason}; give the path of a GGUF file"
            ) from None
        with mapping:
            self.header = parse_header(mapping, str(path))
        self.metadata, self.stored = self.header.metadata, self.header.stored

    def tensor_bytes(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Bytes [start, stop) of tensor `name` as a new array."""
        at = self.stored[name]
        stop = at.size_bytes if stop is None else stop
        return self.bytes.read(at.offset + start, stop - start)


def shard_paths(path: Path) -> list[Path]:
    """All shards of the model whose first (or only) file is `path`.

    Raises:
        InputError: a shard is missing, or `path` is not the first one.
    """
    match = _SHARD_NAME.match(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    if int(match["number"]) != 1:
        raise InputError(f"{path} is shard {int(match['number'])}; give the first one (00001)")
    paths = [path.with_name(f"{match['stem']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        raise InputError(f"{path} has {count} shards, {len(missing)} missing: {', '.join(missing)}")
    return paths


@dataclass(frozen=True)
class FinishedFile:
    """A GGUF file, with its size and modification time when it was finished."""

    path: Path
    size_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class ReusableTensor:
    """A tensor's bytes from `offset` on in an open file, whose `state` was this when finished."""

    source: FileBytes
    state: tuple[int, int]
    offset: int

    def copy_to(self, start: int, stop: int, descriptor: int, at: int) -> bool:
        """Copy the tensor's bytes [start, stop) to byte `at` of the open file `descriptor`.

        False if the finished file was modified: the bytes must be encoded after all.
        """
        if self.source.state() != self.state:
            return False
        try:
            self.source.copy_to(self.offset + start, stop - start, descriptor, at)
        except InputError:  # truncated in the meantime
            return False
        return self.source.state() == self.state


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
            file = GGUFFile(finished.path)
        except InputError:  # gone, or not this GGUF file any more
            continue
        state = (finished.size_bytes, finished.modified_ns)
        if file.bytes.state() == state:
            for name, at in file.stored.items():
                if name not in found and by_name.get(name) == at.info:
                    found[name] = ReusableTensor(file.bytes, state, at.offset)
    return found
