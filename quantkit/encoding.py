"""Encodes a source's tensors into a GGUF: all cores, bounded memory, resumable by tensor.

Every row is encoded on its own, so the bytes depend neither on the number of workers nor on where
an earlier run was killed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
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
SYNC_BYTES = 256 << 20
SYNC_SECONDS = 10.0
"""What a killed run may have to encode again, beside the tensors that were not finished."""

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
    stored_types = {info.name: info.type_name for info in source.tensors}
    for kind in {BY_NAME[info.type_name] for layout in layouts for info in layout.tensors}:
        if kind.is_quantized:
            kernels.prepare(kind)
    journals = [_journal(layout, folder, work) for layout in layouts]
    done = {name for journal in journals for name in journal.lines}
    sizes = {info.name: tensor_size_bytes(info) for lay in layouts for info in lay.tensors}
    before = sum(size for name, size in sizes.items() if name in done)
    progress.start(sum(sizes.values()), "B", done=before)
    paths = []
    with ThreadPoolExecutor(workers) as pool:
        for layout, journal in zip(layouts, journals, strict=True):
            path, growing = folder / layout.file_name, work / layout.file_name
            if END not in journal.lines:
                with open_shard(growing, layout) as writer:
                    left = [info for info in layout.tensors if info.name not in done]
                    encoder = _Encoder(writer, source, importance, stored_types)
                    _encode_all(encoder, left, journal, progress, pool, workers)
                    journal.append(END)
            if growing.exists():
                publish(growing, path)
            paths.append(path)
    return paths


def _journal(layout: ShardLayout, folder: Path, work: Path) -> Journal:
    """The tensors of a shard that an earlier run finished; none where their file is gone."""
    growing = work / layout.file_name
    journal = Journal(work / f"{layout.file_name}.journal", layout.digest)
    whole = growing.exists() and growing.stat().st_size == layout.size_bytes
    if not whole and not (END in journal.lines and (folder / layout.file_name).exists()):
        journal.forget()
    return journal


def _encode_all(
    encoder: _Encoder,
    tensors: Sequence[TensorInfo],
    journal: Journal,
    progress: Progress,
    pool: ThreadPoolExecutor,
    workers: int,
) -> None:
    """Encode `tensors` in one stream of blocks, so that no worker waits for a tensor to end.

    A tensor is journalled once it is on the disk. That is asked for every SYNC_BYTES or
    SYNC_SECONDS, not for every tensor, because each time the disk is waited for.
    """
    unfinished: dict[str, int] = {}
    finished: list[str] = []
    unsynced, synced_at = 0, time.monotonic()
    pending: dict[Future[int], str] = {}

    def settle(at_most: int) -> None:
        nonlocal unsynced
        while len(pending) > at_most:
            for future in wait(pending, return_when=FIRST_COMPLETED).done:
                name, size = pending.pop(future), future.result()
                unfinished[name] -= 1
                if not unfinished[name]:
                    finished.append(name)
                unsynced += size
                progress.advance(size)
            late = time.monotonic() - synced_at >= SYNC_SECONDS
            if finished and (late or unsynced >= SYNC_BYTES):
                keep()

    def keep() -> None:
        nonlocal unsynced, synced_at
        encoder.writer.sync()
        journal.append(*finished)
        finished.clear()
        unsynced, synced_at = 0, time.monotonic()

    try:
        for info in tensors:
            blocks = list(_blocks(info))
            unfinished[info.name] = len(blocks)
            if not blocks:
                finished.append(info.name)
            for block in blocks:
                settle(2 * workers - 1)  # no worker waits, and few blocks do
                pending[pool.submit(encoder.encode, info, *block)] = info.name
        settle(0)
        keep()
    finally:  # nothing may write any more when the file is closed
        for future in pending:
            future.cancel()
        wait(pending)


def _blocks(info: TensorInfo) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row, last row + 1): pieces of bounded size that never cross a matrix."""
    rows_a_matrix = info.rows // info.matrices
    step = max(1, ROWS_BYTES // (4 * info.row_elements))
    for matrix in range(info.matrices):
        base = matrix * rows_a_matrix
        for start in range(0, rows_a_matrix, step):
            yield matrix, base + start, base + min(start + step, rows_a_matrix)


@dataclass(frozen=True)
class _Encoder:
    """Makes blocks of rows and writes them where they belong; safe in several threads."""

    writer: ShardWriter
    source: TensorSource
    importance: Importance
    stored_types: Mapping[str, str]

    def encode(self, info: TensorInfo, matrix: int, start: int, stop: int) -> int:
        """Rows [start, stop) of `info`, which lie in one matrix; returns the bytes written."""
        kind = BY_NAME[info.type_name]
        made = None
        if self.stored_types[info.name] == info.type_name:
            made = self.source.read_stored(info.name, start, stop)
        if made is None:
            weights = self.importance.get(info.name) if kind.is_quantized else None
            rows = self.source.read_rows(info.name, start, stop)
            made = kernels.quantize(kind, rows, None if weights is None else weights[matrix])
        self.writer.write(info.name, made, start * kind.size_bytes(info.row_elements))
        return made.nbytes
