"""Writes GGUF files tensor by tensor, sharded and resumable: same input, same bytes.

The header is known before the first tensor, so a file is laid out first and then filled. Shards
carry llama.cpp's split metadata (`tools/gguf-split`): the first has all keys, the others `split.*`.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.formats.gguf_file import SHARD_NAME, SPLIT_KEYS, ReusableTensor
from quantkit.formats.gguf_header import ARRAY_KIND, DEFAULT_ALIGNMENT, FORMATS, KINDS, MAGIC
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import Metadata, MetaKind, MetaValue, TensorInfo

MAX_SHARD_BYTES = 50 * 10**9  # huggingface_hub's plain-HTTP upload refuses larger files
_SPLIT_KINDS: tuple[MetaKind, ...] = ("u16", "u16", "i32")

_pack_length = struct.Struct("<Q").pack


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape")
    return _pack_length(len(raw)) + raw


@functools.lru_cache(maxsize=8)
def _texts(values: tuple[str, ...]) -> bytes:
    """Cached: planning lays out a model with a hundred thousand tokens many times."""
    return b"".join([_text(value) for value in values])


def _meta(value: MetaValue) -> bytes:
    kind_id, found = KINDS.index(value.kind), value.value
    if not isinstance(found, tuple):
        plain = value.kind != "str"
        raw = struct.pack("<" + FORMATS[value.kind], found) if plain else _text(str(found))
        return struct.pack("<I", kind_id) + raw
    head = struct.pack("<IIQ", ARRAY_KIND, kind_id, len(found))
    if value.kind == "str":
        return head + _texts(tuple(map(str, found)))
    return head + struct.pack(f"<{len(found)}{FORMATS[value.kind]}", *found)


def tensor_size_bytes(info: TensorInfo) -> int:
    """Bytes of a tensor's data, without alignment."""
    return BY_NAME[info.type_name].size_bytes(info.elements)


def _aligned(size: int) -> int:
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def _header(metadata: Metadata, tensors: Sequence[TensorInfo]) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_text(key), _meta(value)]
    offset = 0
    for info in tensors:
        ne = tuple(reversed(info.shape))
        parts.append(_text(info.name))
        parts.append(struct.pack(f"<I{len(ne)}Q", len(ne), *ne))
        parts.append(struct.pack("<IQ", BY_NAME[info.type_name].ggml_id, offset))
        offset += _aligned(tensor_size_bytes(info))
    header = b"".join(parts)
    return header + b"\0" * (_aligned(len(header)) - len(header))


@dataclass(frozen=True)
class ShardLayout:
    """One file of a model: name, header, tensors and their offsets."""

    file_name: str
    header: bytes
    tensors: tuple[TensorInfo, ...]
    offsets: dict[str, int]
    size_bytes: int

    @property
    def digest(self) -> str:
        """Hash of the header, which identifies the layout."""
        return hashlib.sha256(self.header).hexdigest()


def check_stem(stem: str) -> None:
    """Raise InputError if `stem.gguf` is the name of a shard: it would be read as a part only."""
    if SHARD_NAME.fullmatch(f"{stem}.gguf"):
        raise InputError(
            f"{stem}.gguf is the name of one shard of several; choose a name that does not end in "
            "-0000N-of-0000N"
        )


def lay_out(
    stem: str,
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[ShardLayout]:
    """Divide `tensors` into shards of at most `max_shard_bytes` of data, in order.

    A single shard is `stem.gguf`; several are `stem-00001-of-0000N.gguf`, as in llama.cpp. A tensor
    larger than the limit gets a shard of its own.

    Raises:
        InputError: `stem.gguf` is the name of a shard already.
    """
    check_stem(stem)
    groups: list[list[TensorInfo]] = [[]]
    filled = 0
    for info in tensors:
        size = _aligned(tensor_size_bytes(info))
        if groups[-1] and filled + size > max_shard_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(info)
        filled += size
    layouts = []
    for number, group in enumerate(groups):
        keys = dict(metadata) if number == 0 else {}
        keys.pop("general.alignment", None)  # these files use the default
        name = f"{stem}.gguf"
        if len(groups) > 1:
            name = f"{stem}-{number + 1:05}-of-{len(groups):05}.gguf"
            values = (number, len(groups), len(tensors))
            for key, kind, value in zip(SPLIT_KEYS, _SPLIT_KINDS, values, strict=True):
                keys[key] = MetaValue(kind, value)
        header = _header(keys, group)
        offsets, at = {}, len(header)
        for info in group:
            offsets[info.name] = at
            at += _aligned(tensor_size_bytes(info))
        layouts.append(ShardLayout(name, header, tuple(group), offsets, at))
    return layouts


class ShardWriter:
    """Fills one laid-out file in place; unwritten bytes (alignment) are zero."""

    def __init__(self, descriptor: int, layout: ShardLayout) -> None:
        self._fd, self.layout = descriptor, layout

    def write(self, name: str, data: NDArray[np.uint8], at: int = 0) -> None:
        """Write `data` at byte `at` of tensor `name`; thread-safe."""
        view = np.ascontiguousarray(data).data.cast("B")
        _write_at(self._fd, view, self.layout.offsets[name] + at)

    def copy(self, name: str, tensor: ReusableTensor, start: int, stop: int) -> bool:
        """Copy bytes [start, stop) of tensor `name`; False if its file was modified."""
        return tensor.copy_to(start, stop, self._fd, self.layout.offsets[name] + start)

    def sync(self) -> None:
        """Flush everything written so far to the disk."""
        os.fsync(self._fd)


def _write_at(descriptor: int, view: memoryview, offset: int) -> None:
    """Write all of `view`: one call may write less, for example on a nearly full disk."""
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


@contextmanager
def open_shard(path: Path, layout: ShardLayout) -> Iterator[ShardWriter]:
    """Create or continue the file at `path` for `layout`."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    try:
        if os.fstat(descriptor).st_size != layout.size_bytes:
            os.ftruncate(descriptor, 0)
            os.ftruncate(descriptor, layout.size_bytes)
        writer = ShardWriter(descriptor, layout)
        _write_at(descriptor, memoryview(layout.header), 0)
        yield writer
        writer.sync()
    finally:
        os.close(descriptor)


def single_file_layout(stem: str, metadata: Metadata, tensors: Sequence[TensorInfo]) -> ShardLayout:
    """A model as one file, however large."""
    (layout,) = lay_out(stem, metadata, tensors, max_shard_bytes=1 << 62)
    return layout


def write_gguf(
    path: Path,
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    data: Iterable[tuple[str, NDArray[np.uint8]]],
) -> None:
    """Write one GGUF file from the bytes of each tensor; not atomic."""
    with open_shard(path, single_file_layout(path.stem, metadata, tensors)) as writer:
        for name, raw in data:
            writer.write(name, raw)


def write_shape(folder: Path, layout: ShardLayout) -> Path:
    """Write a sparse file of the layout: its header, and a hole in place of the weights."""
    path = folder / layout.file_name
    with path.open("wb") as file:
        file.write(layout.header)
        file.truncate(layout.size_bytes)
    return path
