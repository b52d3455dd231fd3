"""Reading GGUF files: a strict header parser, and a TensorSource over one file or its shards.

Written for hostile input: every count and length is checked against the bytes that are there
before anything is allocated. Layout: ggml's `docs/gguf.md`, version 3 (and 2, which has the same
layout).
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.formats.file_bytes import FileBytes
from quantkit.native.kernels import dequantize
from quantkit.quant_types import BY_ID, BY_NAME
from quantkit.values import Metadata, MetaKind, MetaScalar, MetaValue, TensorInfo

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 64 * 1024  # llama.cpp caps tensor names at 64; keys at 65535
MAX_DIMENSIONS = 4

KINDS: tuple[MetaKind | None, ...] = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", None, "u64", "i64", "f64",
)  # fmt: skip
ARRAY_KIND = 9
SCALAR_FORMATS: dict[str, str] = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f",
    "bool": "?", "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip
_LENGTH = struct.Struct("<Q")
_SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$")


@dataclass(frozen=True)
class StoredAt:
    """Where a tensor's bytes lie: offset from the start of the file, and length."""

    info: TensorInfo
    offset: int
    size_bytes: int


class _Cursor:
    """Reads little-endian values from a buffer and refuses to go past its end."""

    def __init__(self, buffer: mmap.mmap, path: Path) -> None:
        self.buffer, self.path, self.at = buffer, path, 0

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.path} is not a readable GGUF file: {what} at byte {self.at} of "
            f"{len(self.buffer)}; download or convert it again"
        )

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.buffer):
            raise self.fail(f"needs {size} more bytes, has {len(self.buffer) - self.at}")
        chunk = self.buffer[self.at : self.at + size]
        self.at += size
        return chunk

    def number(self, code: str) -> int:
        return cast(int, struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def count(self, smallest_item_bytes: int, what: str) -> int:
        """A u64 count of items that each take at least `smallest_item_bytes`."""
        value = self.number("Q")
        if value * smallest_item_bytes > len(self.buffer) - self.at:
            raise self.fail(f"{what} claims {value} items, more than the file can hold,")
        return value

    def text(self, limit: int | None = None) -> str:
        size = self.count(1, "a string")
        if limit is not None and size > limit:
            raise self.fail(f"a name of {size} bytes (limit {limit})")
        return self.take(size).decode("utf-8", errors="surrogateescape")

    def texts(self, count: int) -> tuple[str, ...]:
        """So many strings; a vocabulary has hundreds of thousands, so none costs a call."""
        buffer, unpack, end = self.buffer, _LENGTH.unpack_from, len(self.buffer)
        found, at = [], self.at
        for _ in range(count):
            begin = at + _LENGTH.size
            stop = begin + unpack(buffer, at)[0] if begin <= end else begin
            if stop > end:
                self.at = at
                self.text()  # says what is wrong
            found.append(buffer[begin:stop].decode("utf-8", "surrogateescape"))
            at = stop
        self.at = at
        return tuple(found)

    def value(self) -> MetaValue:
        kind_id = self.number("I")
        if kind_id != ARRAY_KIND:
            kind = self.kind(kind_id)
            return MetaValue(kind, self.scalar(kind))
        kind = self.kind(self.number("I"))
        if kind == "str":
            count = self.count(8, "an array of strings")
            return MetaValue(kind, self.texts(count))
        code = SCALAR_FORMATS[kind]
        count = self.count(struct.calcsize(code), "an array")
        return MetaValue(
            kind, struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(code)))
        )

    def kind(self, kind_id: int) -> MetaKind:
        kind = KINDS[kind_id] if kind_id < len(KINDS) else None
        if kind is None:
            raise self.fail(f"unknown value type {kind_id}")
        return kind

    def scalar(self, kind: MetaKind) -> MetaScalar:
        if kind == "str":
            return self.text()
        code = SCALAR_FORMATS[kind]
        return cast(MetaScalar, struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])


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
            self._parse(_Cursor(mapping, path))

    def _parse(self, cursor: _Cursor) -> None:
        path, size_bytes = self.path, len(cursor.buffer)
        if cursor.take(min(4, size_bytes)) != MAGIC:
            raise InputError(f"{path} is not a GGUF file: it does not begin with 'GGUF'")
        version = cursor.number("I")
        if version not in (2, 3):
            raise cursor.fail(f"version {version}, quantkit reads 2 and 3 (little-endian),")
        tensor_count = cursor.count(24, "the tensor table")
        metadata_count = cursor.count(12, "the metadata table")
        self.metadata: Metadata = {}
        for _ in range(metadata_count):
            key = cursor.text(MAX_NAME_BYTES)
            self.metadata[key] = cursor.value()
        infos = [self._tensor(cursor) for _ in range(tensor_count)]
        alignment = self._alignment(cursor)
        data_start = -(-cursor.at // alignment) * alignment
        self.stored: dict[str, StoredAt] = {}
        for info, offset in infos:
            kind = BY_NAME[info.type_name]
            size = info.rows * kind.size_bytes(info.row_elements)
            at = data_start + offset
            if at + size > size_bytes:
                raise InputError(
                    f"{path} is cut short: tensor {info.name} ends at byte {at + size}, the file "
                    f"has {size_bytes}; download or convert it again"
                )
            if info.name in self.stored:
                raise cursor.fail(f"tensor {info.name} is listed twice")
            self.stored[info.name] = StoredAt(info, at, size)

    def _tensor(self, cursor: _Cursor) -> tuple[TensorInfo, int]:
        name = cursor.text(MAX_NAME_BYTES)
        n_dims = cursor.number("I")
        if not 1 <= n_dims <= MAX_DIMENSIONS:
            raise cursor.fail(f"tensor {name} has {n_dims} dimensions")
        ne = struct.unpack(f"<{n_dims}Q", cursor.take(8 * n_dims))
        type_id, offset = cursor.number("I"), cursor.number("Q")
        kind = BY_ID.get(type_id)
        if kind is None:
            raise cursor.fail(f"tensor {name} has unknown type {type_id}")
        if not kind.fits_row(ne[0]) or math.prod(ne) >= 1 << 62:
            raise cursor.fail(f"tensor {name} has shape {ne}, impossible for {kind.name},")
        return TensorInfo(name, tuple(reversed(ne)), kind.name), offset

    def _alignment(self, cursor: _Cursor) -> int:
        value = self.metadata.get("general.alignment", MetaValue("u32", DEFAULT_ALIGNMENT)).value
        if not isinstance(value, int) or value <= 0 or value & (value - 1):
            raise cursor.fail(f"general.alignment is {value!r}, not a power of two")
        return value

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
