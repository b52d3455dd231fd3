"""Reads GGUF files, finds the shards of a model, and tensors to copy from finished files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.units import shown
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import parse_header
from quantkit.formats.tensors import TensorInfo

SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
"""What each shard says: its number from 0, and the files and tensors of the whole model."""


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
    """All shards of the model whose first (or only) file is `path`, by their names.

    Raises:
        InputError: a shard is missing, or `path` is not the first one.
    """
    match = SHARD_NAME.fullmatch(path.name)
    if match is None:
        return [path]
    number, count = int(match["number"]), int(match["count"])
    if number != 1 or not count:
        raise InputError(f"{path} is named as shard {number} of {count}; give the first (00001)")
    paths = [path.with_name(f"{match['stem']}-{n + 1:05}-of-{count:05}.gguf") for n in range(count)]
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        some = ", ".join(missing[:3]) + ", …" * (len(missing) > 3)
        raise InputError(f"{path} has {count} shards, {len(missing)} missing: {some}")
    return paths


def open_shards(path: Path) -> list[GGUFFile]:
    """The files of the model whose first (or only) file is `path`, checked to be all of it.

    What the files say of each other decides, as in llama.cpp (`llama-model-loader.cpp`); a file
    that llama-gguf-split merged has a `split.count` of 0.

    Raises:
        InputError: a file is broken or missing, is a shard under another name, or belongs to
            another model.
    """
    files = [GGUFFile(one) for one in shard_paths(path)]
    count, tensors = len(files), sum(len(file.stored) for file in files)
    holder: dict[str, GGUFFile] = {}
    for number, file in enumerate(files):
        for key, wanted in zip(SPLIT_KEYS, (number, count, tensors), strict=True):
            found = file.metadata[key].value if key in file.metadata else None
            may_be = (wanted,) if count > 1 else (wanted, None, 0 if key == "split.count" else None)
            if found not in may_be or isinstance(found, bool | float):
                named = f"file {number + 1} of {count}" if count > 1 else "a whole model"
                raise InputError(
                    f"{file.path} is {named} by its name, with {tensors} tensors in all, but its "
                    f"{key} is {shown(str(found))}; give the first shard, beside the others and "
                    "named as it was made, …-00001-of-0000N.gguf"
                )
        for name in file.stored:
            if (other := holder.setdefault(name, file)) is not file:
                raise InputError(
                    f"tensor {name} is in {other.path} and in {file.path.name}; the shards do not "
                    "belong together: download or convert them again"
                )
    return files


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
