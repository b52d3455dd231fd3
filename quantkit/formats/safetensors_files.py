"""Strict, lazy reading of safetensors: one file, or a folder of shards.

The format (https://huggingface.co/docs/safetensors): eight little-endian bytes with the header's
length, a JSON header {name: {dtype, shape, data_offsets}}, then the tensors' bytes without gaps.
The library checks all of that but does not return positions, which reading by rows needs (ADR 7).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.parsing import MOST_JSON_BYTES, bounded_json, read_bounded
from quantkit.core.units import shown
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.stand_ins import STAND_IN_BYTES, refuse_stand_in

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
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
WHOLE = "model.safetensors"
"""The name of weights in one file."""
INDEX = "model.safetensors.index.json"
"""Which tensor is in which shard."""
_VARIANT = re.compile(
    r"(?:^model(?:-\d+-of-\d+)?\.\w+|\.(?:b?fp?|int|nf)\d+\w*)(?:-\d+-of-\d+)?\.safetensors$"
)
"""The same weights once more in another precision (`variant` in transformers and diffusers):
model.fp16.safetensors, model.fp16-00001-of-00002.safetensors, model-00001-of-00002.fp16.safetensors
"""
_NOT_WEIGHTS = {
    "adapter": "a LoRA adapter without its model: merge the two, with merge_and_unload() of PEFT, "
    "and give the folder that the result is saved to",
    "consolidated": "weights under the names of Mistral's or Meta's own programs: choose a "
    "repository or a revision that has them under the names of transformers",
}
"""Beginning of a file's name → what it holds instead of a checkpoint's weights, and what to do."""
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
            raise InputError(
                f"{path} cannot be read: {error.strerror}; download it again"
            ) from error
        size = self._bytes.size_bytes
        start = self._bytes.read(0, min(size, STAND_IN_BYTES)).tobytes()
        refuse_stand_in(start, str(path))
        length = header_bytes(start)
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

    Attributes:
        absent: tensors that the index names and no file holds. As in transformers, the index says
            which files there are and not what is in them.

    Raises:
        InputError: there is no safetensors file, a shard that the index names is missing, or a
            file is broken.
    """

    def __init__(self, path: Path, files: Iterable[SafetensorsFile] | None = None) -> None:
        self._file_of: dict[str, SafetensorsFile] = {}
        found = [*map(SafetensorsFile, weight_paths(path))] if files is None else [*files]
        for file in found:
            twice = self._file_of.keys() & file.entries.keys()
            if twice:
                name = min(twice)
                raise InputError(
                    f"{file.name}: tensor {name} is also in {self._file_of[name].name}; "
                    "remove the files that do not belong to this checkpoint"
                )
            self._file_of |= dict.fromkeys(file.entries, file)
        is_whole = any(file.name == WHOLE for file in found)
        listed = {} if is_whole else _read_index(path) or {}
        self.absent = frozenset(listed.keys() - self._file_of.keys())

    @property
    def entries(self) -> dict[str, SafetensorsEntry]:
        """Every tensor, in the order of files and of their headers."""
        return {name: file.entries[name] for name, file in self._file_of.items()}

    def file_of(self, name: str) -> SafetensorsFile:
        """The file that holds the tensor."""
        return self._file_of[name]


def weight_names(names: Iterable[str], shards: Iterable[str] | None) -> list[str]:
    """Which of a folder's or a repository's `names` hold the weights, as transformers chooses.

    A whole model.safetensors goes before an index, and variants (model.fp16.safetensors) are never
    taken. Without both, all model*.safetensors are, or else whatever there is.

    Args:
        shards: the files that the index names; None without an index. Whether `names` has them is
            not checked.
    """
    found = sorted(n for n in names if n.endswith(".safetensors") and not _VARIANT.search(n))
    if WHOLE in found:
        return [WHOLE]
    if shards is not None:
        return sorted(set(shards))
    # Mistral's folders hold the same weights a second time as consolidated*.safetensors.
    whole = [name for name in found if not name.startswith(tuple(_NOT_WEIGHTS))]
    return [name for name in whole if name.startswith("model")] or whole


def weight_paths(path: Path) -> list[Path]:
    """The files that hold the weights of the checkpoint in `path`, or `path` if it is one.

    Raises:
        InputError: there are none, or some are missing.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path} does not exist; give a folder with a checkpoint")
    names = sorted(found.name for found in path.iterdir())
    listed = None if (path / WHOLE).is_file() else _read_index(path)
    shards = None if listed is None else set(listed.values())
    found = [path / name for name in weight_names(names, shards)]
    if shards is not None:
        missing = [shard.name for shard in found if not shard.is_file()]
        if missing:
            raise InputError(
                f"{path}: {len(missing)} of {len(found)} shards are missing, the first is "
                f"{missing[0]}; finish the download"
            )
    elif not found:
        raise no_weights(str(path), names)
    # Without an index the shards' names, -00002-of-00004, still say how many there must be.
    totals = {m[1] for s in found if (m := re.search(r"-\d+-of-(\d+)\.safetensors$", s.name))}
    if shards is None and len(totals) == 1 and len(found) < (expected := int(totals.pop())):
        raise InputError(f"{path}: {len(found)} of {expected} shards are here; finish the download")
    return found


def no_weights(where: str, names: Iterable[str]) -> InputError:
    """The error for a folder or repository of which none of the files `names` is read."""
    names = sorted(names)
    variant = next((name for name in names if _VARIANT.search(name)), None)
    for start, what in _NOT_WEIGHTS.items():
        if other := next((n for n in names if n.startswith(start) and "safetensors" in n), None):
            return InputError(f"{where} has only {other}, {what}")
    pickle = next((name for name in names if name.endswith(PICKLE_SUFFIXES)), None)
    if variant is not None:
        return InputError(
            f"{where} has only {variant}, a variant of weights that it does not have, and variants "
            "are not read, as in transformers: choose a revision with the weights themselves, or "
            "rename it, without what stands before .safetensors, if it is all that you have"
        )
    if pickle is not None:
        return InputError(
            f"{where} has no *.safetensors, only {pickle}: pickle files run code when they are "
            "read, so only safetensors are: use a revision or a conversion of the model that has "
            "them"
        )
    return InputError(
        f"{where} holds no *.safetensors file; choose the repository of the model's original "
        "weights, or finish its download"
    )


def _read_index(path: Path) -> dict[str, str] | None:
    index = path / INDEX
    if not index.is_file():
        return None
    content = read_bounded(index, MOST_JSON_BYTES, "download it again")
    refuse_stand_in(content, str(index))
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
