"""Copies of a GGUF file with one thing wrong that llama.cpp loads without a word."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.tensor_types import BY_NAME


def mistyped(path: Path, out: Path, tensor: str, type_name: str) -> Path:
    """`tensor` said to be of another type, whose bytes for the shape are as many."""
    data = bytearray(path.read_bytes())
    info = GGUFFile(path).stored[tensor].info
    kind, other = BY_NAME[info.type_name], BY_NAME[type_name]
    assert kind.size_bytes(info.elements) == other.size_bytes(info.elements)
    at = _table_entry(data, tensor, len(info.shape))
    assert struct.unpack_from("<I", data, at)[0] == kind.ggml_id
    struct.pack_into("<I", data, at, other.ggml_id)
    out.write_bytes(data)
    return out


def swapped(path: Path, out: Path, tensor: str, one: int, other: int) -> Path:
    """The experts `one` and `other` of the stack `tensor` in each other's place."""
    shutil.copyfile(path, out)
    stored = GGUFFile(path).stored[tensor]
    size = stored.size_bytes // stored.info.matrices
    with out.open("r+b") as file:
        parts = []
        for expert in (one, other):
            file.seek(stored.offset + expert * size)
            parts.append(file.read(size))
        for expert, part in zip((other, one), parts, strict=True):
            file.seek(stored.offset + expert * size)
            file.write(part)
    assert parts[0] != parts[1]
    return out


def exchanged(path: Path, out: Path, one: str, other: str) -> Path:
    """Two tensors of one shape and type in each other's place."""
    data = bytearray(path.read_bytes())
    a, b = (GGUFFile(path).stored[name] for name in (one, other))
    assert (a.info.shape, a.info.type_name) == (b.info.shape, b.info.type_name)
    first, second = (bytes(data[at.offset : at.offset + at.size_bytes]) for at in (a, b))
    assert first != second
    data[a.offset : a.offset + a.size_bytes] = second
    data[b.offset : b.offset + b.size_bytes] = first
    out.write_bytes(data)
    return out


def with_nan(path: Path, out: Path, tensor: str) -> Path:
    """An F32 tensor whose numbers are none."""
    data = bytearray(path.read_bytes())
    stored = GGUFFile(path).stored[tensor]
    assert stored.info.type_name == "F32"
    nan = struct.pack("<f", float("nan"))
    data[stored.offset : stored.offset + stored.size_bytes] = nan * stored.info.elements
    out.write_bytes(data)
    return out


def with_context_length(path: Path, out: Path, tokens: int) -> Path:
    """A context_length of `tokens` in the metadata."""
    data = bytearray(path.read_bytes())
    architecture = str(GGUFFile(path).metadata["general.architecture"].value)
    key = f"{architecture}.context_length".encode()
    at = data.index(struct.pack("<Q", len(key)) + key) + 8 + len(key)
    assert struct.unpack_from("<I", data, at)[0] == 4  # an u32
    struct.pack_into("<I", data, at + 4, tokens)
    out.write_bytes(data)
    return out


def _table_entry(data: bytearray, tensor: str, dimensions: int) -> int:
    """Where the type of `tensor` stands in the tensor table."""
    name = tensor.encode()
    at = data.index(struct.pack("<Q", len(name)) + name + struct.pack("<I", dimensions))
    return at + 8 + len(name) + 4 + 8 * dimensions
