"""The header of a .safetensors file: validated by the safetensors library, then its positions.

The format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the header's
length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
The library checks all of that but does not tell positions, which reading by rows needs (ADR 7).
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from quantkit.core.errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit; the flagship's largest header is below 1 MB."""

LENGTH_BYTES = 8
"""What a file begins with: the length of its header."""

DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""The dtypes that are converted, and the size of an element."""


class SafetensorsEntry(NamedTuple):
    """One tensor of a file: row-major `shape`, `dtype` and its bytes [begin, end) in the file.

    A tuple, because checkpoints have tens of thousands: it is made in a third of the time that a
    frozen dataclass takes.
    """

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def read_header(path: Path) -> dict[str, SafetensorsEntry]:
    """All tensors of the file by name, in the header's order.

    Raises:
        InputError: the file is missing, truncated, or its header contradicts itself.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(LENGTH_BYTES)
            length = header_bytes(start)
            start += stream.read(length if length <= MAX_HEADER_BYTES else 0)
            size_bytes = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return _entries(start, size_bytes, path, str(path), "download it again")


def header_bytes(start: bytes) -> int:
    """How long the JSON of the file is that begins with `start`; 0 where even that is cut off."""
    length = start[:LENGTH_BYTES]
    return int.from_bytes(length, "little") if len(length) == LENGTH_BYTES else 0


def parse_header(
    start: bytes, size_bytes: int, where: str, advice: str
) -> dict[str, SafetensorsEntry]:
    """All tensors of a file by name, of which only the header is here.

    Args:
        start: the file's first bytes, to the end of its header at least.
        size_bytes: of the whole file, which the header must account for to the byte.
        where: the file, for messages.
        advice: what to do about a broken one.

    Raises:
        InputError: the header is cut off, or contradicts itself or the file's size.
    """
    # The library reads files: this one has the header and the size, and takes no room on the disk.
    with tempfile.NamedTemporaryFile() as sparse:
        try:
            sparse.write(start)
            sparse.flush()
            os.truncate(sparse.name, size_bytes)
        except (OSError, OverflowError) as error:
            raise InputError(f"{where}: a file of {size_bytes} bytes ({error}); {advice}") from None
        return _entries(start, size_bytes, Path(sparse.name), where, advice)


def _entries(
    start: bytes, size_bytes: int, path: Path, where: str, advice: str
) -> dict[str, SafetensorsEntry]:
    """What the header in `start` says, after the file in `path` was validated."""
    from safetensors import SafetensorError, safe_open

    data_start = LENGTH_BYTES + header_bytes(start)
    present = min(len(start), size_bytes)
    if present < data_start <= LENGTH_BYTES + MAX_HEADER_BYTES:
        raise InputError(
            f"{where}: it is truncated: the header ends at byte {data_start}, the file has "
            f"{present}; {advice}"
        )
    try:
        with safe_open(path, "np"):
            pass
        described = json.loads(start[LENGTH_BYTES:data_start])
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        reason = str(error).removeprefix("Error while deserializing header: ")[:200]
        raise InputError(
            f"{where} has {size_bytes} bytes and is no whole safetensors file ({reason}"
            f"{_accounted(start[LENGTH_BYTES:data_start], data_start)}); {advice}"
        ) from None
    described.pop("__metadata__", None)
    return {
        name: SafetensorsEntry(
            tuple(tensor["shape"]),
            tensor["dtype"],
            *(data_start + offset for offset in tensor["data_offsets"]),
        )
        for name, tensor in described.items()
    }


def _accounted(header: bytes, data_start: int) -> str:
    """How many bytes a file with this header has, for a message; nothing if that cannot be said."""
    try:
        described = json.loads(header).values()
        ends = [int(tensor["data_offsets"][1]) for tensor in described if "data_offsets" in tensor]
        return f"; its header accounts for {data_start + max(ends)} bytes"
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return ""
