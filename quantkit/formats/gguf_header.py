"""Strict parser of GGUF headers, from a mapped file or from the first bytes of a remote one.

Written for hostile input: every count and length is checked against the file's size before anything
is allocated. The totals are limited too, for a sparse file is as large as it likes and takes no
disk. Layout: ggml's `docs/gguf.md`, version 3 (and 2, which has the same layout).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

from quantkit.core.errors import InputError
from quantkit.core.units import shown
from quantkit.formats.stand_ins import STAND_IN_BYTES, stand_in
from quantkit.formats.tensor_types import BY_ID, BY_NAME
from quantkit.formats.tensors import Metadata, MetaKind, MetaValue, TensorInfo

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
MAX_NAME_BYTES = 64 * 1024  # llama.cpp limits tensor names to 64 bytes and keys to 65535
MAX_DIMENSIONS = 4

KINDS: tuple[MetaKind | None, ...] = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "str", None, "u64", "i64", "f64",
)  # fmt: skip
ARRAY_KIND = 9
FORMATS: dict[str, str] = {
    "u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f",
    "bool": "?", "u64": "Q", "i64": "q", "f64": "d",
}  # fmt: skip
FIRST_BYTES = 64 << 10  # of a remote file: more than a header without a vocabulary has
MAX_BYTES = 64 << 20  # of a header; a vocabulary of 250,000 tokens takes about 10 MB
MAX_ITEMS = 4_000_000  # of all arrays: more than a vocabulary of a million tokens has
MAX_ENTRIES = 100_000  # keys, and tensors: each takes a kilobyte in memory
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class StoredAt:
    """A stored tensor: offset of its bytes from the start of the file, and their number."""

    info: TensorInfo
    offset: int
    size_bytes: int


@dataclass(frozen=True)
class GGUFHeader:
    """A parsed header: its tensors in the table's order, and the size of the whole file."""

    metadata: Metadata
    stored: Mapping[str, StoredAt]
    alignment: int
    data_start: int
    size_bytes: int


class _Incomplete(Exception):
    """The header continues after the bytes at hand, at least to byte `needed`."""

    def __init__(self, needed: int) -> None:
        self.needed = needed


class _Cursor:
    """Reads little-endian values from a file's first bytes, with checks of its size."""

    def __init__(self, buffer: mmap.mmap | bytes, size_bytes: int, name: str) -> None:
        self.buffer, self.size_bytes, self.name, self.at = buffer, size_bytes, name, 0
        self.items = 0

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.name} is not a readable GGUF file: {what} at byte {self.at} of "
            f"{self.size_bytes}; download or convert it again"
        )

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > self.size_bytes:
            raise self.fail(f"needs {size} more bytes, has {self.size_bytes - self.at}")
        if self.at + size > MAX_BYTES:
            raise InputError(
                f"{self.name} has a header of {self.at + size} bytes or more (limit {MAX_BYTES}); "
                "download or convert it again"
            )
        if self.at + size > len(self.buffer):
            raise _Incomplete(self.at + size)
        chunk = self.buffer[self.at : self.at + size]
        self.at += size
        return chunk

    def number(self, code: str) -> int:
        return cast(int, struct.unpack("<" + code, self.take(struct.calcsize(code)))[0])

    def count(self, smallest_item_bytes: int, what: str, limit: int | None = None) -> int:
        """A u64 count of items that each take at least `smallest_item_bytes`."""
        value = self.number("Q")
        if value * smallest_item_bytes > self.size_bytes - self.at:
            raise self.fail(f"{what} has {value} items, more than the file can hold,")
        if limit is not None and value > limit:
            raise self.fail(f"{what} has {value} items (limit {limit})")
        return value

    def text(self) -> str:
        """A value; bytes that are not UTF-8 are kept as they are, and written again."""
        return self.take(self.count(1, "a string")).decode("utf-8", errors="surrogateescape")

    def name_of(self, what: str) -> str:
        """The name of a key or a tensor: printable text, so it can be in a message or a journal."""
        found = self.take(self.count(1, f"the name of {what}", MAX_NAME_BYTES))
        name = found.decode("utf-8", errors="surrogateescape")
        if not name.isprintable():
            raise self.fail(
                f"the name of {what}, {shown(name)}, is not printable UTF-8 text; it ends"
            )
        return name

    def texts(self, count: int) -> tuple[str, ...]:
        """`count` strings, in one loop without calls: a vocabulary has hundreds of thousands."""
        buffer, unpack = self.buffer, _LENGTH.unpack_from
        end = min(len(buffer), MAX_BYTES)
        found, at = [], self.at
        for _ in range(count):
            begin = at + _LENGTH.size
            stop = begin + unpack(buffer, at)[0] if begin <= end else begin
            if stop > end:
                self.at = at
                self.text()  # raises the right error
            found.append(buffer[begin:stop].decode("utf-8", "surrogateescape"))
            at = stop
        self.at = at
        return tuple(found)

    def value(self) -> MetaValue:
        kind_id = self.number("I")
        if kind_id != ARRAY_KIND:
            kind = self.kind(kind_id)
            return MetaValue(kind, self.text() if kind == "str" else self.number(FORMATS[kind]))
        kind = self.kind(self.number("I"))
        size = 8 if kind == "str" else struct.calcsize(FORMATS[kind])
        count = self.count(size, "an array")
        self.items += count
        if self.items > MAX_ITEMS:
            raise self.fail(f"arrays of {self.items} items together (limit {MAX_ITEMS})")
        if kind == "str":
            return MetaValue(kind, self.texts(count))
        return MetaValue(kind, struct.unpack(f"<{count}{FORMATS[kind]}", self.take(count * size)))

    def kind(self, kind_id: int) -> MetaKind:
        kind = KINDS[kind_id] if kind_id < len(KINDS) else None
        if kind is None:
            raise self.fail(f"unknown value type {kind_id}")
        return kind


def parse_header(buffer: mmap.mmap | bytes, name: str, size_bytes: int | None = None) -> GGUFHeader:
    """The header of the file that begins with `buffer`.

    Args:
        name: of the file, for messages.
        size_bytes: of the whole file, if `buffer` is only its beginning.

    Raises:
        InputError: it is not GGUF, truncated, inconsistent, or over a limit: `MAX_BYTES`,
            `MAX_ITEMS`, `MAX_ENTRIES`.
        _Incomplete: the header does not end in `buffer`.
    """
    cursor = _Cursor(buffer, len(buffer) if size_bytes is None else size_bytes, name)
    if cursor.take(min(4, cursor.size_bytes)) != MAGIC:
        found = stand_in(bytes(buffer[:STAND_IN_BYTES]))
        raise InputError(
            f"{name} is not a GGUF file: it does not begin with 'GGUF'"
            + (f", but is {found}" if found else "")
        )
    version = cursor.number("I")
    if version not in (2, 3):
        raise cursor.fail(f"version {version} (supported are 2 and 3, little-endian)")
    tensor_count = cursor.count(24, "the tensor table", MAX_ENTRIES)
    metadata_count = cursor.count(12, "the metadata table", MAX_ENTRIES)
    metadata: Metadata = {}
    for _ in range(metadata_count):
        key = cursor.name_of("a key")
        metadata[key] = cursor.value()
    infos = [_tensor(cursor) for _ in range(tensor_count)]
    alignment = metadata.get("general.alignment", MetaValue("u32", DEFAULT_ALIGNMENT)).value
    if not isinstance(alignment, int) or alignment <= 0 or alignment & (alignment - 1):
        raise cursor.fail(f"general.alignment is {alignment!r}, not a power of two")
    data_start = -(-cursor.at // alignment) * alignment
    stored: dict[str, StoredAt] = {}
    for info, offset in infos:
        kind = BY_NAME[info.type_name]
        size = info.rows * kind.size_bytes(info.row_elements)
        at = data_start + offset
        if at + size > cursor.size_bytes:
            raise InputError(
                f"{name} is truncated: tensor {info.name} ends at byte {at + size}, the file has "
                f"{cursor.size_bytes}; download or convert it again"
            )
        if info.name in stored:
            raise cursor.fail(f"tensor {info.name} is listed twice")
        stored[info.name] = StoredAt(info, at, size)
    return GGUFHeader(metadata, stored, alignment, data_start, cursor.size_bytes)


def read_header(read: Callable[[int, int], bytes], size_bytes: int, name: str) -> GGUFHeader:
    """The header of a remote file, with few calls of `read(start, stop)` for its bytes.

    Raises:
        InputError: see `parse_header`.
    """
    content = read(0, min(FIRST_BYTES, size_bytes))
    while True:
        try:
            return parse_header(content, name, size_bytes)
        except _Incomplete as incomplete:
            stop = min(max(incomplete.needed, 4 * len(content)), MAX_BYTES, size_bytes)
            content += read(len(content), stop)


def _tensor(cursor: _Cursor) -> tuple[TensorInfo, int]:
    name = cursor.name_of("a tensor")
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
