"""Strict, lazy reading of safetensors: one file, or a folder of shards.

The format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the header's
length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
The library checks all of that but does not return positions, which reading by rows needs (ADR 7).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json, read_bounded
from quantkit.core.units import shown
from quantkit.formats.file_bytes import FileBytes

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit; the flagship's largest header is below 1 MB."""
LENGTH_BYTES = 8
"""What a file begins with: the length of its header."""
DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
"""The dtypes that are converted, and the size of an element."""
CONVERTIBLE = tuple(DTYPE_BYTES)
_WITHOUT_DATA = "file not fully covered"
"""End of the library's refusal of a right header whose data is missing: the last of its checks
(`read_metadata` in safetensors' tensor.rs)."""
_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_INDEX = "model.safetensors.index.json"
_PLAIN_NAME = re.compile(r"(?!\.\.?\Z)[^/\0]+")


class SafetensorsEntry(NamedTuple):
    """One tensor of a file: row-major `shape`, `dtype` and its bytes [begin, end) in the file.

    A tuple, because checkpoints have tens of thousands and a frozen dataclass is slower to make.
    """

    shape: tuple[int, ...]
    dtype: str
    begin: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def header_bytes(start: bytes) -> int:
    """How long the JSON of the file is that begins with `start`; 0 where even that is cut off."""
    length = start[:LENGTH_BYTES]
    return int.from_bytes(length, "little") if len(length) == LENGTH_BYTES else 0


def parse_header(
    start: bytes, size_bytes: int, where: str, advice: str
) -> dict[str, SafetensorsEntry]:
    """All tensors of a file by name, in the header's order, from its header alone.

    Args:
        start: the file's first bytes, to the end of its header at least.
        size_bytes: of the whole file, which the header must account for to the byte.
        where: the file, for messages.
        advice: what to do about a broken one.

    Raises:
        InputError: the header is cut off, or contradicts itself or the file's size.
    """
    from safetensors import SafetensorError, deserialize

    data_start = LENGTH_BYTES + header_bytes(start)
    present = min(len(start), size_bytes)
    if present < data_start <= LENGTH_BYTES + MAX_HEADER_BYTES:
        raise InputError(
            f"{where}: it is truncated: the header ends at byte {data_start}, the file has "
            f"{present}; {advice}"
        )
    try:
        try:
            deserialize(start[:data_start])  # type: ignore[no-untyped-call]  # its stubs lack it
        except SafetensorError as error:
            if not str(error).endswith(_WITHOUT_DATA):
                raise
        described = bounded_json(start[LENGTH_BYTES:data_start], f"the header of {where}", advice)
        described.pop("__metadata__", None)
        end = data_start + max((t["data_offsets"][1] for t in described.values()), default=0)
        if end != size_bytes:
            raise ValueError(f"{_WITHOUT_DATA}; its header accounts for {end} bytes")
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = str(error).removeprefix("Error while deserializing: ")[:200]
        raise InputError(
            f"{where} has {size_bytes} bytes and is no whole safetensors file ({reason}); {advice}"
        ) from None
    return {
        name: SafetensorsEntry(
            tuple(tensor["shape"]),
            tensor["dtype"],
            *(data_start + offset for offset in tensor["data_offsets"]),
        )
        for name, tensor in described.items()
    }


class SafetensorsFile:
    """One .safetensors file, its header fully checked on opening, its data read on demand.

    Raises:
        InputError: the file is missing, truncated, or its header contradicts itself.
    """

    has_data = True
    """Whether more than its header is here."""

    def __init__(self, path: Path) -> None:
        self.name = path.name
        try:
            self._bytes = FileBytes(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}") from error
        size = self._bytes.size_bytes
        length = header_bytes(self._bytes.read(0, min(size, LENGTH_BYTES)).tobytes())
        stop = LENGTH_BYTES + (length if length <= MAX_HEADER_BYTES else 0)
        start = self._bytes.read(0, min(size, stop)).tobytes()
        self.entries = parse_header(start, size, str(path), "download it again")

    def read_raw(self, name: str, start: int, stop: int) -> NDArray[np.uint8]:
        """The bytes of elements [start, stop) of the flattened tensor, as a new array."""
        out = np.empty((stop - start) * DTYPE_BYTES[self.entries[name].dtype], np.uint8)
        self.read_raw_into(name, start, out)
        return out

    def read_raw_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """Fill the contiguous array `out` with the tensor's bytes from element `start` on."""
        entry = self.entries[name]
        self._bytes.read_into(entry.begin + start * DTYPE_BYTES[entry.dtype], out)

    def gather_raw(self, name: str, rows: NDArray[np.intp], row_elements: int) -> NDArray[np.uint8]:
        """The bytes of the given rows, shape (len(rows), bytes a row).

        Neighbouring rows are read at once, and so is a range of which at least half is wanted
        (rotary layouts permute within a head); nothing else is read.
        """
        if not rows.size:
            return np.empty((0, row_elements * DTYPE_BYTES[self.entries[name].dtype]), np.uint8)
        first, last = int(rows.min()), int(rows.max()) + 1
        if last - first <= 2 * rows.size:
            span = self.read_raw(name, first * row_elements, last * row_elements)
            table = span.reshape(last - first, -1)
            consecutive = last - first == rows.size and bool((np.diff(rows) == 1).all())
            return table if consecutive else table[rows - first]
        cuts = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), rows.size]
        runs = [
            self.read_raw(name, int(rows[a]) * row_elements, int(rows[b - 1] + 1) * row_elements)
            for a, b in itertools.pairwise(cuts)
        ]
        return np.concatenate(runs).reshape(rows.size, -1)


class SafetensorsHeader(SafetensorsFile):
    """A .safetensors file of the repository `origin`, of which only the header is here.

    See `parse_header` for the other arguments and errors.
    """

    has_data = False

    def __init__(self, name: str, start: bytes, size_bytes: int, origin: str, advice: str) -> None:
        self.name = name
        self.entries = parse_header(start, size_bytes, f"{origin}: {name}", advice)
        self._origin = origin

    def read_raw_into(self, name: str, start: int, out: NDArray[np.uint8]) -> None:
        """Raise InputError: the weights are not here."""
        raise InputError(
            f"of {self._origin} only headers are here, so {name} cannot be read; "
            f"'quantkit download {self._origin}' brings the weights"
        )


def as_f32(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float32]:
    """Little-endian BF16, F16 or F32 values as F32; the last axis holds a row's bytes.

    BF16 is the upper half of an F32, F16 widens: both are exact. F32 is not copied.
    """
    if dtype == "BF16":
        bits: NDArray[np.uint32] = np.left_shift(raw.view("<u2"), 16, dtype=np.uint32)
        return bits.view(np.float32)
    return raw.view("<f2" if dtype == "F16" else "<f4").astype(np.float32, copy=False)


class SafetensorsFolder:
    """All tensors of a checkpoint folder, or of a single file, or of the `files` given, by name.

    Raises:
        InputError: there is no safetensors file, a shard or tensor that the index names is
            missing, or a file is broken.
    """

    def __init__(self, path: Path, files: Iterable[SafetensorsFile] | None = None) -> None:
        self._file_of: dict[str, SafetensorsFile] = {}
        listed = _read_index(path)
        if files is None:
            files = map(SafetensorsFile, _shard_paths(path, listed))
        for file in files:
            twice = self._file_of.keys() & file.entries.keys()
            if twice:
                name = min(twice)
                raise InputError(
                    f"{file.name}: tensor {name} is also in {self._file_of[name].name}; "
                    "remove the files that do not belong to this checkpoint"
                )
            self._file_of |= dict.fromkeys(file.entries, file)
        if listed is not None:
            self._check_against_index(path, listed)

    def _check_against_index(self, folder: Path, listed: Mapping[str, str]) -> None:
        for name in (*listed, *self._file_of):
            said, file = listed.get(name, "no file"), self._file_of.get(name)
            found = "no file" if file is None else file.name
            if found != said:
                raise InputError(
                    f"{folder / _INDEX} says that tensor {name} is in {said}, "
                    f"but it is in {found}; download the checkpoint again"
                )

    @property
    def entries(self) -> dict[str, SafetensorsEntry]:
        """Every tensor, in the order of files and of their headers."""
        return {name: file.entries[name] for name, file in self._file_of.items()}

    def file_of(self, name: str) -> SafetensorsFile:
        """The file that holds the tensor."""
        return self._file_of[name]


def _shard_paths(path: Path, listed: Mapping[str, str] | None) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a folder with a checkpoint")
    if listed is not None:
        shards = [path / name for name in sorted(set(listed.values()))]
        missing = [shard.name for shard in shards if not shard.is_file()]
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of {len(shards)} shards are missing, the first is "
                f"{missing[0]}; finish the download"
            )
        return shards
    found = sorted(path.glob("*.safetensors"))
    # Mistral's folders hold the same weights a second time as consolidated*.safetensors.
    found = [shard for shard in found if shard.name.startswith("model")] or found
    if found:
        # Without an index the shards' names, -00002-of-00004, still say how many there must be.
        totals = {m[1] for s in found if (m := re.search(r"-\d+-of-(\d+)\.safetensors$", s.name))}
        if len(totals) == 1 and len(found) < (expected := int(totals.pop())):
            raise InputError(
                f"{path}: {len(found)} of {expected} shards are here; finish the download"
            )
        return found
    pickles = sorted(p.name for p in path.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if pickles:
        raise InputError(
            f"{path} holds {pickles[0]} but no *.safetensors; pickle files run code when they are "
            "read, so only safetensors are: use a revision of the model that has them"
        )
    raise InputError(f"{path} holds no *.safetensors file; is the download complete?")


def _read_index(path: Path) -> dict[str, str] | None:
    index = path / _INDEX
    if not index.is_file():
        return None
    content = read_bounded(index, MOST_JSON_BYTES, "download it again")
    found = bounded_json(content, str(index), "download it again", foreign=True)
    weight_map = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map is empty or no object; download it again")
    for name, shard in weight_map.items():
        # A name with a folder in it could make us read any file of this machine.
        if not isinstance(shard, str) or not _PLAIN_NAME.fullmatch(shard):
            raise InputError(
                f"{index}: {shown(name)} is in {shown(str(shard))!r}, which is no plain file name"
            )
    return weight_map
