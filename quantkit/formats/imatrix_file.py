"""llama.cpp's importance-matrix files: sums of squared activations and their counts.

The GGUF form is written byte for byte as by save_imatrix of `tools/imatrix/imatrix.cpp`: a weight
`W` has `W.in_sum2` (matrices × row) and `W.counts` (matrices × 1), both F32, without leading
dimensions of 1, so a dense weight has `[row]` and `[1]`.

The older form, `.dat`, is read too. It is little-endian, without magic or padding: the number of
entries; for each its name, calls and values (mean square × calls); then the number of chunks and
the name of the text (save_imatrix_legacy). It does not store how many tokens reached an expert, how
many experts a stack has, and how long a chunk was.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.files import open_file
from quantkit.formats.file_bytes import FileBytes
from quantkit.formats.gguf_file import GGUFFile, open_shards
from quantkit.formats.gguf_header import MAGIC, MAX_NAME_BYTES
from quantkit.formats.gguf_writer import write_gguf
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo

SUMS, COUNTS = ".in_sum2", ".counts"
UNKNOWN = "quantkit.imatrix.unknown"
"""quantkit's own key in files converted from a `.dat`: says that counts were assumed."""
LARGEST_IMPORTANCE = 1e18
"""Limit for a mean squared activation: some of ggml's quantizers abort on larger ones."""
MAX_BYTES = 4 << 30
"""Of a file, whose sums are all in memory; the flagship's have 0.3 GB."""
MAX_VALUES = 1 << 26
"""Of a weight: experts times columns; the largest published models have a twentieth of that."""
SMALLEST_IMPORTANCE = 1e-18
"""Columns below count as without: products of two are 0 in F32, and so is a column of zeros."""
LEGACY_CHUNK_TOKENS = 512
"""llama-imatrix's default, assumed for a `.dat`, which does not store it."""
_LARGEST_LEGACY_VALUE = float(np.finfo(np.float32).max) / LEGACY_CHUNK_TOKENS
_SMALLEST_LEGACY_ENTRY_BYTES = 4 + 1 + 4 + 4 + 4


@dataclass(frozen=True)
class ImatrixEntry:
    """Statistics of one weight.

    Attributes:
        sums: Σ x² for each input column, F32, shape (matrices, row elements).
        counts: activations seen by each matrix (expert), F32, shape (matrices,); or (1,), a
            common count of a stack that is not one of experts.
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    @property
    def tokens(self) -> NDArray[np.float32]:
        """Activations seen by each matrix, shape (matrices,)."""
        return np.broadcast_to(self.counts, len(self.sums))

    def means(self) -> NDArray[np.float32]:
        """Mean squared activation, shape (matrices, row elements), as llama-quantize takes it.

        An expert that no token reached has a flat 1.
        """
        tokens = self.tokens
        seen = tokens > 0
        mean = np.ones_like(self.sums)
        mean[seen] = self.sums[seen] / tokens[seen, None]
        return mean

    def importance(self) -> NDArray[np.float32]:
        """`means`, none of them 0, for the quantizers and for the errors that they are judged by.

        ggml's quantizers write zeros where a whole block has no importance, and anything in the
        columns that have none: weights of an expert that one token reached, of which other inputs
        need all columns. So a matrix with such columns, an expert without tokens above all, is
        taken to have seen one token more, which is the mean of all matrices; and these together
        one more, which is the mean of all columns. Other matrices keep their `means` bit for bit.
        """
        mean, tokens = self.means(), self.tokens.astype(np.float64)
        low = (mean < SMALLEST_IMPORTANCE).any(axis=1) | (tokens <= 0)
        if not low.any():
            return mean
        sums = self.sums * (tokens > 0)[:, None]
        total, reached = sums.sum(axis=0, dtype=np.float64), float(tokens.sum())
        flat = float(total.mean()) / max(reached, 1.0)
        if flat < SMALLEST_IMPORTANCE:  # nothing is known of any column
            return np.ones_like(mean)
        prior = (total + flat) / (reached + 1)
        if len(mean) == 1:
            mean[:] = prior
        else:
            mean[low] = (sums[low] + prior) / (tokens[low, None] + 1)
        return mean

    @property
    def is_usable(self) -> bool:
        """Whether ggml can use all of its importance."""
        with np.errstate(over="ignore", invalid="ignore"):
            return bool((self.importance() <= LARGEST_IMPORTANCE).all())

    @property
    def unseen(self) -> int:
        """Experts that no calibration token reached."""
        return int((self.tokens <= 0).sum())


@dataclass(frozen=True)
class Imatrix:
    """A whole importance matrix: entries by weight name, and how it was collected.

    `unknown` are sentences about what a `.dat` does not store and was assumed; empty for others.
    """

    entries: Mapping[str, ImatrixEntry]
    chunk_tokens: int
    chunks: int
    datasets: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    @property
    def dataset_names(self) -> tuple[str, ...]:
        """`datasets` without folders, which llama-imatrix writes as they were given.

        A Hub dataset keeps its address; others, such as `file:///home/me/a.txt`, are shortened.
        """
        return tuple(
            name if name.startswith("hf://") else re.split(r"[/\\]", name.rstrip("/\\"))[-1]
            for name in self.datasets
        )

    def importance(self) -> dict[str, NDArray[np.float32]]:
        """Weight name → `ImatrixEntry.importance`."""
        return {name: entry.importance() for name, entry in self.entries.items()}

    @property
    def counts_are_exact(self) -> bool:
        """Whether `counts` are tokens; of a `.dat` it is only known whether there were any."""
        return not self.unknown


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write `imatrix` to `path`, names sorted as by llama.cpp; not atomic."""
    metadata: Metadata = {
        "general.type": MetaValue("str", "imatrix"),
        "imatrix.datasets": MetaValue("str", imatrix.datasets),
        "imatrix.chunk_count": MetaValue("u32", imatrix.chunks),
        "imatrix.chunk_size": MetaValue("u32", imatrix.chunk_tokens),
    }
    if imatrix.unknown:
        metadata[UNKNOWN] = MetaValue("str", imatrix.unknown)
    data: dict[str, NDArray[np.float32]] = {}
    for name in sorted(imatrix.entries):
        data[name + SUMS] = imatrix.entries[name].sums
        data[name + COUNTS] = imatrix.entries[name].counts.reshape(-1, 1)
    # ggml counts dimensions up to the last that is not 1
    shapes = {name: a.shape[1:] if a.shape[0] == 1 else a.shape for name, a in data.items()}
    infos = [TensorInfo(name, shape, "F32") for name, shape in shapes.items()]
    raw = (np.ascontiguousarray(array, dtype="<f4").view(np.uint8) for array in data.values())
    write_gguf(path, metadata, infos, zip(data, raw, strict=True))


def read_imatrix(path: Path, rows: Mapping[str, int] | None = None) -> Imatrix:
    """Read an importance matrix that quantkit or llama-imatrix wrote, GGUF or legacy `.dat`.

    `rows` is weight name → row elements in the model, which separate the experts of a stack in a
    `.dat`; without them such a stack is one matrix.

    Raises:
        InputError: not an imatrix, over `MAX_BYTES`, or inconsistent in itself or with `rows`.
    """
    try:
        size = path.stat().st_size
        with open_file(path) as file:
            magic = file.read(len(MAGIC))
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give the path of an imatrix"
        ) from None
    if size > MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, an imatrix at most {MAX_BYTES}; give another")
    return _read_gguf(path, rows or {}) if magic == MAGIC else _read_legacy(path, rows or {})


def _read_gguf(path: Path, rows: Mapping[str, int]) -> Imatrix:
    file, *more = open_shards(path)
    if more:
        raise InputError(f"{path} is the first of {len(more) + 1} files; an imatrix is one file")
    kind = file.metadata.get("general.type")
    if kind is None or kind.value != "imatrix":
        raise InputError(
            f"{path} is a GGUF file but not an imatrix (general.type is not 'imatrix')"
        )
    entries = {}
    for name, at in file.stored.items():
        if not name.endswith(SUMS):
            continue
        weight = name.removesuffix(SUMS)
        counted = file.stored.get(weight + COUNTS)
        if max(at.info.elements, counted.info.elements if counted else 0) > MAX_VALUES:
            raise InputError(
                f"{path}: {weight} has {at.info.elements:,} values (limit {MAX_VALUES:,}); "
                "collect the imatrix again"
            )
        if not at.info.elements:
            raise InputError(f"{path}: {weight} has no columns; collect the imatrix again")
        if counted is None or {at.info.type_name, counted.info.type_name} != {"F32"}:
            raise InputError(f"{path}: {weight} has sums but no counts; collect the imatrix again")
        counts = file.tensor_bytes(weight + COUNTS).view("<f4").astype(np.float32)
        sums = file.tensor_bytes(name).view("<f4").reshape(at.info.rows, -1).astype(np.float32)
        if sums.shape[1] != rows.get(weight, sums.shape[1]):
            raise InputError(
                f"{path}: {weight} has {sums.shape[1]} columns, the model's has {rows[weight]}; "
                "the imatrix was collected on another model"
            )
        if counts.size not in (1, len(sums)):
            raise InputError(f"{path}: {weight} has {len(sums)} sums for {counts.size} counts")
        if not all(np.isfinite(a).all() and (a >= 0).all() for a in (counts, sums)):
            raise InputError(
                f"{path}: {weight} has sums or counts that are negative or not finite; "
                "collect the imatrix again"
            )
        if ((counts > 0) & (counts < 1)).any():  # a mean would be larger than F32 has
            raise InputError(f"{path}: {weight} has less than one token; collect the imatrix again")
        entries[weight] = ImatrixEntry(sums, counts)
    return Imatrix(
        entries,
        chunk_tokens=_integer(file, "imatrix.chunk_size"),
        chunks=_integer(file, "imatrix.chunk_count"),
        datasets=_strings(file, "imatrix.datasets"),
        unknown=_strings(file, UNKNOWN),
    )


def _strings(file: GGUFFile, key: str) -> tuple[str, ...]:
    """Texts; what is not UTF-8 in them, as in a path of another system, is replaced."""
    value = file.metadata.get(key, MetaValue("str", ())).value
    texts = map(str, value) if isinstance(value, tuple) else ()
    return tuple(t.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for t in texts)


def _integer(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, MetaValue("u32", 0)).value
    return value if isinstance(value, int) else 0


class _LegacyCursor:
    """Reads values of a `.dat`; every length is checked against the file's size first."""

    def __init__(self, path: Path) -> None:
        self.content = FileBytes(path).map() if path.stat().st_size else b""
        self.path, self.at = path, 0

    def fail(self, what: str) -> InputError:
        return InputError(
            f"{self.path} is neither a GGUF file nor a readable legacy imatrix (.dat): {what} at "
            f"byte {self.at} of {len(self.content)}; collect the imatrix again"
        )

    def number(self, what: str, least: int, item_bytes: int = 0) -> int:
        """An integer of at least `least`; the file holds so many items of `item_bytes` each."""
        left = len(self.content) - self.at - 4
        if left < 0:
            raise self.fail(f"it ends before {what}")
        (value,) = struct.unpack_from("<i", self.content, self.at)
        if value < least:
            raise self.fail(f"{what} is {value}")
        if value * item_bytes > left:
            raise self.fail(f"{what} is {value}, more than the file can hold,")
        self.at += 4
        return int(value)

    def text(self, what: str, least: int) -> str:
        size = self.number(what, least, 1)
        if size > MAX_NAME_BYTES:
            raise self.fail(f"{what} is {size} (limit {MAX_NAME_BYTES})")
        text = self.content[self.at : self.at + size].decode("utf-8", "surrogateescape")
        if not text.isprintable():
            raise self.fail(f"a name is not printable text ({what} is {size})")
        self.at += size
        return text

    def floats(self, what: str) -> NDArray[np.float32]:
        count = self.number(what, 1, 4)
        if count > MAX_VALUES:
            raise self.fail(f"{what} is {count} (limit {MAX_VALUES})")
        values = np.frombuffer(self.content, "<f4", count, self.at).astype(np.float32)
        if not ((values >= 0) & (values <= _LARGEST_LEGACY_VALUE)).all():
            raise self.fail(
                "a mean square that is negative, not finite or above "
                f"{_LARGEST_LEGACY_VALUE:g}, in the values"
            )
        self.at += 4 * count
        return values


def _read_legacy(path: Path, rows: Mapping[str, int]) -> Imatrix:
    """Means are exact; every matrix that was reached gets the largest matrix' count."""
    cursor = _LegacyCursor(path)
    entries: dict[str, ImatrixEntry] = {}
    for _ in range(cursor.number("the number of entries", 1, _SMALLEST_LEGACY_ENTRY_BYTES)):
        name = cursor.text("a name's length", 1)
        if name in entries:
            raise cursor.fail(f"{name} is listed twice")
        calls = cursor.number(f"the number of calls of {name}", 1)
        values = cursor.floats(f"the number of values of {name}")
        row = rows.get(name, values.size)
        if row < 1 or values.size % row:
            raise InputError(
                f"{path}: {name} has {values.size} values, the model's rows have {row}; "
                "the imatrix was collected on another model"
            )
        entries[name] = _from_legacy(values.reshape(-1, row), calls)
    unknown = [
        "a legacy .dat holds no counts: only whether an expert was reached",
        f"a legacy .dat holds no chunk size: llama-imatrix's {LEGACY_CHUNK_TOKENS} is assumed",
    ]
    stacks = [name for name in entries if "_exps." in name and name not in rows]
    if stacks:
        unknown.append(
            f"a legacy .dat does not tell experts apart: without the model, {len(stacks)} stacks "
            "are one matrix each"
        )
    chunks, dataset = 0, ""
    if cursor.at < len(cursor.content):
        chunks = cursor.number("the number of chunks", 0)
        dataset = cursor.text("the length of the dataset's name", 0)
        if left := len(cursor.content) - cursor.at:
            raise cursor.fail(f"{left} bytes after its end")
    else:
        unknown.append("this .dat is of an old writer: chunks and dataset are not in it")
    datasets = (dataset,) if dataset else ()
    return Imatrix(entries, LEGACY_CHUNK_TOKENS, chunks, datasets, tuple(unknown))


def _from_legacy(values: NDArray[np.float32], calls: int) -> ImatrixEntry:
    # an expert without tokens has a mean of exactly 1 in every column
    reached = (values != np.float32(calls)).any(axis=1) | (len(values) == 1)
    sums = np.where(reached[:, None], values * np.float32(LEGACY_CHUNK_TOKENS), np.float32(0))
    counts = np.where(reached, np.float32(calls * LEGACY_CHUNK_TOKENS), np.float32(0))
    return ImatrixEntry(sums, counts)
