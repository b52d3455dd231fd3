"""Reads GGUF files and finds the shards of a model; `gguf_header` has the parser."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import parse_header

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
            self._bytes = FileBytes(path)
            with path.open("rb") as file:
                mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
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
        return self._bytes.read(at.offset + start, stop - start)


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
