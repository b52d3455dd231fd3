"""Reading GGUF files: a TensorSource over one file or its shards; `gguf_header` has the parser."""

from __future__ import annotations

import mmap
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_header import parse_header
from quantkit.native.kernels import dequantize
from quantkit.quant_types import BY_NAME
from quantkit.values import Metadata, TensorInfo

_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


class GGUFFile:
    """One GGUF file: `metadata`, and `stored` by tensor name in file order.

    The header is parsed from a mapping that is closed again; data is read on demand.

    Raises:
        InputError: the file is missing, is not GGUF, is truncated, or contradicts itself.
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
    """All shards of the model that `path` is the first (or only) file of.

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


class GGUFSource:
    """TensorSource over a GGUF file or its shards; quantized tensors are dequantized on read."""

    def __init__(self, path: Path) -> None:
        self.paths = shard_paths(path)
        files = [GGUFFile(p) for p in self.paths]
        self.metadata: Metadata = {
            key: value for key, value in files[0].metadata.items() if not key.startswith("split.")
        }
        if "general.architecture" not in self.metadata:
            raise InputError(f"{path} has no general.architecture: it is not a model")
        self._file_of = {name: file for file in files for name in file.stored}
        self.tensors: Sequence[TensorInfo] = tuple(
            at.info for file in files for at in file.stored.values()
        )

    def read_rows(self, name: str, start: int, stop: int) -> NDArray[np.float32]:
        """Rows [start, stop) of tensor `name` as F32, shape (stop - start, row elements)."""
        info = self._file_of[name].stored[name].info
        return dequantize(
            BY_NAME[info.type_name], self.read_stored(name, start, stop), info.row_elements
        )

    def read_stored(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of rows [start, stop) as they lie in the file, shape (rows, bytes a row)."""
        file = self._file_of[name]
        info = file.stored[name].info
        row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
        raw = file.tensor_bytes(name, start * row_bytes, stop * row_bytes)
        return raw.reshape(stop - start, row_bytes)
