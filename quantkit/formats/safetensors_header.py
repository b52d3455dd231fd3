"""The header of a .safetensors file, with everything that it says checked before it is used.

The format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the header's
length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.errors import InputError

MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's own limit; the flagship's largest header is below 1 MB."""

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


@dataclass(frozen=True)
class SafetensorsEntry:
    """One tensor of a file: row-major `shape`, `dtype` and its bytes [begin, end) in the file."""

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
        actual = path.stat().st_size
        with path.open("rb") as stream:
            prefix = stream.read(8)
            length = int.from_bytes(prefix, "little") if len(prefix) == 8 else 0
            if length > MAX_HEADER_BYTES:
                raise InputError(
                    f"{path}: the header says it is {length} bytes long, the limit is "
                    f"{MAX_HEADER_BYTES}; this is no safetensors file, download it again"
                )
            header = stream.read(length)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(prefix) < 8 or len(header) < length:
        raise _truncated(path, 8 + length, actual)
    try:
        described = json.loads(header, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: the header is not JSON ({error}); download it again") from error
    if not isinstance(described, dict):
        raise InputError(f"{path}: the header is no JSON object; download it again")
    described.pop("__metadata__", None)
    entries = {name: _entry(path, name, value, 8 + length) for name, value in described.items()}
    _check_layout(path, entries, 8 + length, actual)
    return entries


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a name occurs twice")
    return members


def _entry(path: Path, name: str, value: object, data_start: int) -> SafetensorsEntry:
    match value:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [begin, end]}:
            pass
        case _:
            raise InputError(f"{path}: tensor {name} is described as {value!r}; download it again")
    if dtype not in DTYPE_BYTES:
        raise InputError(
            f"{path}: tensor {name} has the unknown dtype {dtype!r}; "
            f"known dtypes: {', '.join(DTYPE_BYTES)}"
        )
    # JSON's true is an int to Python, but no length.
    if any(type(n) is not int or n < 0 for n in (*shape, begin, end)) or begin > end:
        raise InputError(
            f"{path}: tensor {name} has shape {shape} and data_offsets [{begin}, {end}]; "
            "these must be increasing whole numbers, download it again"
        )
    expected = math.prod(shape) * DTYPE_BYTES[dtype]
    if end - begin != expected:
        raise InputError(
            f"{path}: tensor {name} of shape {shape} and dtype {dtype} takes {expected} bytes, "
            f"but data_offsets span {end - begin}; download it again"
        )
    return SafetensorsEntry(tuple(shape), dtype, data_start + begin, data_start + end)


def _check_layout(
    path: Path, entries: Mapping[str, SafetensorsEntry], data_start: int, actual: int
) -> None:
    """The tensors fill the file without holes and overlaps, as the format demands."""
    position = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            fault = "overlaps the tensor before it" if entry.begin < position else "follows a hole"
            raise InputError(
                f"{path}: tensor {name} begins at byte {entry.begin}, expected {position}: "
                f"it {fault}; download it again"
            )
        position = entry.end
    if actual < position:
        raise _truncated(path, position, actual)
    if actual > position:
        raise InputError(
            f"{path} has {actual} bytes, but its header accounts for {position}; download it again"
        )


def _truncated(path: Path, expected: int, actual: int) -> InputError:
    return InputError(
        f"{path} is truncated: expected at least {expected} bytes, has {actual}; download it again"
    )
