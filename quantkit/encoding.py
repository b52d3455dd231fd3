"""Encodes a source's tensors into a GGUF: all cores, bounded memory, resumable by tensor.

Every row is encoded on its own, so the bytes depend neither on the number of workers nor on where
an earlier run was killed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.gguf_writer import ShardLayout, ShardWriter, open_shard, tensor_size_bytes
from quantkit.formats.source import TensorSource
from quantkit.journal import Journal
from quantkit.native import kernels
from quantkit.progress import Progress
from quantkit.quant_types import BY_NAME
from quantkit.receipts import publish
from quantkit.values import TensorInfo

END = "(end of shard)"
ROWS_BYTES = 16 << 20
"""F32 bytes of the rows that one worker holds at a time."""

Importance = Mapping[str, NDArray[np.float32]]
"""Weight name → mean squared activation, shape (matrices, row elements)."""


def write_shards(
    folder: Path,
    work: Path,
    layouts: list[ShardLayout],
    source: TensorSource,
    importance: Importance,
    progress: Progress,
    workers: int,
) -> list[Path]:
    """Encode all tensors of `layouts` from `source` into files in `folder`.

    Files grow in `work` and move when they are complete; a run that was killed goes on at the
    tensor it had reached. A tensor that the source already stores in the wanted type is copied.

    Returns:
        The finished files.
    """
    progress.start(sum(tensor_size_bytes(i) for layout in layouts for i in layout.tensors), "B")
    stored_types = {info.name: info.type_name for info in source.tensors}
    for kind in {BY_NAME[info.type_name] for layout in layouts for info in layout.tensors}:
        if kind.is_quantized:
            kernels.prepare(kind)
    paths = []
    with ThreadPoolExecutor(workers) as pool:
        for layout in layouts:
            path, growing = folder / layout.file_name, work / layout.file_name
            journal = Journal(work / f"{layout.file_name}.journal", layout.digest)
            whole = growing.exists() and growing.stat().st_size == layout.size_bytes
            if not whole and not (END in journal.lines and path.exists()):
                journal.forget()  # what it lists is gone
            done = set(journal.lines)
            if END not in done:
                with open_shard(growing, layout) as writer:
                    for info in layout.tensors:
                        if info.name not in done:
                            copy = stored_types[info.name] == info.type_name
                            _encode(writer, info, source, importance, pool, workers, copy)
                            writer.sync()
                            journal.append(info.name)
                        progress.advance(tensor_size_bytes(info))
                    journal.append(END)
            if growing.exists():
                publish(growing, path)
            paths.append(path)
    return paths


def _blocks(info: TensorInfo) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row, last row + 1): pieces of bounded size that never cross a matrix."""
    rows_a_matrix = info.rows // info.matrices
    step = max(1, ROWS_BYTES // (4 * info.row_elements))
    for matrix in range(info.matrices):
        base = matrix * rows_a_matrix
        for start in range(0, rows_a_matrix, step):
            yield matrix, base + start, base + min(start + step, rows_a_matrix)


def _encode(
    writer: ShardWriter,
    info: TensorInfo,
    source: TensorSource,
    importance: Importance,
    pool: ThreadPoolExecutor,
    workers: int,
    copy: bool,
) -> None:
    stored = source.read_stored(info.name) if copy else None
    if stored is not None:
        writer.write(info.name, stored)
        return
    kind = BY_NAME[info.type_name]
    weights = importance.get(info.name) if kind.is_quantized else None
    row_bytes = info.row_elements // kind.block_elements * kind.block_bytes

    def piece(matrix: int, start: int, stop: int) -> None:
        rows = source.read_rows(info.name, start, stop)
        column_weights = None if weights is None else weights[matrix]
        writer.write(info.name, kernels.quantize(kind, rows, column_weights), start * row_bytes)

    pending: set[Future[None]] = set()
    for block in _blocks(info):
        if len(pending) >= 2 * workers:  # bounds memory to a few blocks a worker
            finished, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
        pending.add(pool.submit(piece, *block))
    for future in pending:
        future.result()
