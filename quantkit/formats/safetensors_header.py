"""The header of a .safetensors file, with everything that it says checked before it is used.

The format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the header's
length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from quantkit.core.errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's own limit; the flagship's largest header is below 1 MB."""

LENGTH_BYTES = 8
"""What a file begins with: the length of its header."""

DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}


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
            start += stream.read(length if length <= MAX_HEADER_BYTES else 0)  # it is no header
            actual = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    return parse_header(start, actual, str(path))


def header_bytes(start: bytes) -> int:
    """How long the JSON of the file is that begins with `start`; 0 where even that is cut off."""
    length = start[:LENGTH_BYTES]
    return int.from_bytes(length, "little") if len(length) == LENGTH_BYTES else 0


def parse_header(
    start: bytes, size_bytes: int, where: str, advice: str = "download it again"
) -> dict[str, SafetensorsEntry]:
    """All tensors of a file by name, in the header's order.

    Args:
        start: the file's first bytes, to the end of its header at least.
        size_bytes: of the whole file, which the header must account for to the byte.
        where: the file, for messages.
        advice: what to do about a broken one.

    Raises:
        InputError: the header is cut off, or contradicts itself or the file's size.
    """
    try:
        return _parsed(start, size_bytes)
    except _HeaderFault as fault:
        raise InputError(f"{where}: {fault}; {advice}") from None


class _HeaderFault(Exception):
    """What is wrong with a header, in a sentence without the file's name."""


def _parsed(start: bytes, size_bytes: int) -> dict[str, SafetensorsEntry]:
    length = header_bytes(start)
    data_start = LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES:
        raise _HeaderFault(
            f"the header says it is {length} bytes long, the limit is {MAX_HEADER_BYTES}; this is "
            "no safetensors file"
        )
    if len(start) < data_start:
        raise _truncated(data_start, len(start))
    try:
        described = _without_duplicates(start[LENGTH_BYTES:data_start])
    except (ValueError, RecursionError) as error:
        raise _HeaderFault(f"the header is not JSON ({error})") from error
    if not isinstance(described, dict):
        raise _HeaderFault("the header is no JSON object")
    described.pop("__metadata__", None)
    entries = {name: _entry(name, value, data_start) for name, value in described.items()}
    _check_layout(entries, data_start, size_bytes)
    return entries


def _without_duplicates(header: bytes) -> Any:  # noqa: ANN401 - any JSON
    """What the JSON says.

    Raises:
        ValueError: it is not valid, or a name occurs twice in an object.
        RecursionError: it is nested too deeply.
    """
    value = json.loads(header)
    # Each member has a colon, so there were no more members than colons: if as many are left,
    # none has replaced another. Asking the parser takes twice as long, so it is asked only where
    # names have colons too.
    if isinstance(value, dict):
        inner = sum(len(member) for member in value.values() if isinstance(member, dict))
        if len(value) + inner == header.count(b":"):
            return value
    return json.loads(header, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _entry(name: str, value: Any, data_start: int) -> SafetensorsEntry:  # noqa: ANN401 - any JSON
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
    except (TypeError, KeyError, ValueError):
        dtype = shape = begin = end = None
    if not isinstance(dtype, str) or not isinstance(shape, list):
        raise _HeaderFault(f"tensor {name} is described as {value!r}")
    if dtype not in DTYPE_BYTES:
        raise _HeaderFault(
            f"tensor {name} has the unknown dtype {dtype!r}, known are {', '.join(DTYPE_BYTES)}"
        )
    if not _are_sizes((*shape, begin, end)) or begin > end:
        raise _HeaderFault(
            f"tensor {name} has shape {shape} and data_offsets [{begin}, {end}]; these must be "
            "increasing whole numbers"
        )
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise _HeaderFault(
            f"tensor {name} of shape {shape} and dtype {dtype} takes {expected} bytes, but "
            f"data_offsets span {end - begin}"
        )
    return SafetensorsEntry(tuple(shape), dtype, data_start + begin, data_start + end)


def _are_sizes(numbers: tuple[Any, ...]) -> bool:
    for number in numbers:
        # JSON's true is an int to Python, but no length.
        if type(number) is not int or number < 0:
            return False
    return True


def _check_layout(entries: Mapping[str, SafetensorsEntry], data_start: int, actual: int) -> None:
    """The tensors fill the file without holes and overlaps, as the format demands."""
    position = data_start
    for begin, end, name in sorted((entry.begin, entry.end, n) for n, entry in entries.items()):
        if begin != position:
            fault = "overlaps the tensor before it" if begin < position else "follows a hole"
            raise _HeaderFault(
                f"tensor {name} begins at byte {begin}, expected {position}: it {fault}"
            )
        position = end
    if actual < position:
        raise _truncated(position, actual)
    if actual > position:
        raise _HeaderFault(f"it has {actual} bytes, but its header accounts for {position}")


def _truncated(expected: int, actual: int) -> _HeaderFault:
    return _HeaderFault(f"it is truncated: expected at least {expected} bytes, has {actual}")
