"""llama.cpp's importance-matrix file in GGUF: sums of squared activations and their counts.

Layout: `tools/imatrix/imatrix.cpp`, save_imatrix. For a weight `W` the file holds `W.in_sum2`
(matrices × row) and `W.counts` (matrices × 1), both F32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.formats.gguf_file import GGUFFile
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.values import Metadata, MetaValue, TensorInfo

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class ImatrixEntry:
    """Statistics of one weight.

    Attributes:
        sums: Σ x² for each input column, F32, shape (matrices, row elements).
        counts: activations seen by each matrix (expert), F32, shape (matrices,).
    """

    sums: NDArray[np.float32]
    counts: NDArray[np.float32]

    def importance(self) -> NDArray[np.float32]:
        """Mean squared activation, shape (matrices, row elements).

        An expert that no token reached gets the mean of those that were reached, scaled as they
        are, instead of llama.cpp's flat 1.
        """
        seen = self.counts > 0
        mean = np.ones_like(self.sums)
        mean[seen] = self.sums[seen] / self.counts[seen, None]
        if seen.any() and not seen.all():
            mean[~seen] = mean[seen].mean(axis=0)
        return mean

    @property
    def unseen(self) -> int:
        """Experts that no calibration token reached."""
        return int((self.counts <= 0).sum())


@dataclass(frozen=True)
class Imatrix:
    """A whole importance matrix: entries by weight name, and how it was collected."""

    entries: Mapping[str, ImatrixEntry]
    chunk_tokens: int
    chunks: int
    datasets: tuple[str, ...]


def write_imatrix(path: Path, imatrix: Imatrix) -> None:
    """Write `imatrix` to `path`, names sorted as llama.cpp sorts them; not atomic by itself."""
    metadata: Metadata = {
        "general.type": MetaValue("str", "imatrix"),
        "imatrix.datasets": MetaValue("str", imatrix.datasets),
        "imatrix.chunk_count": MetaValue("u32", imatrix.chunks),
        "imatrix.chunk_size": MetaValue("u32", imatrix.chunk_tokens),
    }
    data: dict[str, NDArray[np.float32]] = {}
    for name in sorted(imatrix.entries):
        data[name + SUMS] = imatrix.entries[name].sums
        data[name + COUNTS] = imatrix.entries[name].counts.reshape(-1, 1)
    infos = [TensorInfo(name, array.shape, "F32") for name, array in data.items()]
    (layout,) = lay_out(path.stem, metadata, infos, max_shard_bytes=1 << 62)
    with open_shard(path, layout) as writer:
        for name, array in data.items():
            writer.write(name, np.ascontiguousarray(array, dtype="<f4").view(np.uint8))


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix that quantkit or llama-imatrix wrote.

    Raises:
        InputError: not a GGUF imatrix, or its tensors do not pair up.
    """
    file = GGUFFile(path)
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
        if weight + COUNTS not in file.stored or at.info.type_name != "F32":
            raise InputError(f"{path}: {weight} has sums but no counts; collect the imatrix again")
        counts = file.tensor_bytes(weight + COUNTS).view("<f4").astype(np.float32)
        sums = file.tensor_bytes(name).view("<f4").reshape(at.info.rows, -1).astype(np.float32)
        if counts.size == 1:  # a dense weight, stacked or not, sees every token
            counts = np.repeat(counts, len(sums))
        if counts.size != len(sums):
            raise InputError(f"{path}: {weight} has {len(sums)} sums for {counts.size} counts")
        entries[weight] = ImatrixEntry(sums, counts)
    datasets = file.metadata.get("imatrix.datasets", MetaValue("str", ())).value
    return Imatrix(
        entries,
        chunk_tokens=_integer(file, "imatrix.chunk_size"),
        chunks=_integer(file, "imatrix.chunk_count"),
        datasets=tuple(map(str, datasets)) if isinstance(datasets, tuple) else (),
    )


def _integer(file: GGUFFile, key: str) -> int:
    value = file.metadata.get(key, MetaValue("u32", 0)).value
    return value if isinstance(value, int) else 0
