"""Encodes a source's tensors into a GGUF: all cores, bounded memory, resumable by tensor.

Every row is encoded on its own, so the bytes depend neither on the number of workers nor on where
an earlier run was killed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import InputError
from quantkit.core.files import publish
from quantkit.core.journal import Journal
from quantkit.core.progress import Progress
from quantkit.core.units import bytes_text
from quantkit.formats.gguf_writer import ShardLayout, ShardWriter, open_shard, tensor_size_bytes
from quantkit.formats.ready_tensors import FinishedFile, ReadyTensor, ready_tensors
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize import kernels
from quantkit.quantize.kernels import simd

END = "(end of shard)"
ROWS_BYTES = 16 << 20
"""F32 bytes of the rows that one worker holds at a time, at most."""
ENCODED_ROWS_BYTES = 1 << 20
"""The same where they are encoded: they stay in a core's cache, and all workers end together."""
LARGEST_WEIGHT = 1e18
"""Of what is encoded: the square of a much larger one is infinite in F32."""
SYNC_BYTES = 64 << 20
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
    finished: Sequence[FinishedFile] = (),
) -> list[Path]:
    """Encode all tensors of `layouts` from `source` into files in `folder`.

    Files grow in `work` and move when they are complete; a run that was killed goes on at the
    tensor it had reached. A tensor that the source already stores in the wanted type is copied.

    Args:
        finished: files that were made of the same source with the same importance; what they hold
            in the wanted type is copied too. The bytes are the same without them.

    Returns:
        The finished files.

    Raises:
        InputError: a weight is not finite, or too large for its type.
    """
    stored_types = {info.name: info.type_name for info in source.tensors}
    wanted = [info for layout in layouts for info in layout.tensors]
    for kind in {BY_NAME[info.type_name] for info in wanted}:
        if kind.is_quantized:
            kernels.prepare(kind)
    slower = {i.type_name for i in wanted if i.name in importance} & set(simd.KINDS)
    if slower and (reason := simd.why_not()) is not None:
        progress.note(f"ggml's own kernels are used for {', '.join(sorted(slower))}: {reason}")
    journals = [_journal(layout, folder, work) for layout in layouts]
    done = {name for journal in journals for name in journal.lines}
    sizes = {info.name: tensor_size_bytes(info) for info in wanted}
    before = sum(size for name, size in sizes.items() if name in done)
    progress.start(sum(sizes.values()), "B", done=before)
    encoded = [info for info in wanted if stored_types[info.name] != info.type_name]
    ready = ready_tensors(finished, encoded)
    if ready:
        shared, all_of_them = (sum(sizes[name] for name in ready), sum(sizes.values()))
        progress.note(
            f"{len(ready)} of {len(encoded)} tensors to encode, {bytes_text(shared)} of "
            f"{bytes_text(all_of_them)}, are copied from files that hold them already"
        )
    paths = []
    with ThreadPoolExecutor(workers) as pool:
        for layout, journal in zip(layouts, journals, strict=True):
            path, growing = folder / layout.file_name, work / layout.file_name
            if END not in journal.lines:
                with open_shard(growing, layout) as writer:
                    left = [info for info in layout.tensors if info.name not in done]
                    encoder = _Encoder(writer, source, importance, stored_types, ready)
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
    """Encode `tensors` as one stream of blocks, which the workers take one by one.

    So no worker waits for a tensor to end, nor for the disk: that this thread does. A tensor is
    journalled once it is on the disk, which is asked for every SYNC_BYTES or SYNC_SECONDS.
    """
    blocks = _Blocks(block for info in tensors for block in encoder.blocks(info))
    written = SimpleQueue[tuple[str, int] | None]()

    def work() -> None:
        try:
            while (block := blocks.take()) is not None:
                written.put((block.info.name, encoder.encode(block)))
        finally:
            blocks.stop()  # the last is taken, or an error ends all
            written.put(None)

    left = {info.name: tensor_size_bytes(info) for info in tensors}
    finished = [name for name, size in left.items() if not size]
    unsynced, synced_at = 0, time.monotonic()

    def keep() -> None:
        nonlocal unsynced, synced_at
        encoder.writer.sync()
        journal.append(*finished)
        finished.clear()
        unsynced, synced_at = 0, time.monotonic()

    running = [pool.submit(work) for _ in range(workers)]
    try:
        working = workers
        while working:
            done = written.get()
            if done is None:
                working -= 1
                continue
            name, size = done
            left[name] -= size
            if not left[name]:
                finished.append(name)
            unsynced += size
            progress.advance(size)
            late = time.monotonic() - synced_at >= SYNC_SECONDS
            if finished and (late or unsynced >= SYNC_BYTES):
                keep()
        for future in running:
            future.result()
        keep()
    finally:  # nothing may write any more when the file is closed
        blocks.stop()
        wait(running)


class _Blocks:
    """Blocks that several threads take, each once, until they are stopped."""

    def __init__(self, blocks: Iterator[_Block]) -> None:
        self._blocks, self._lock = blocks, threading.Lock()

    def take(self) -> _Block | None:
        with self._lock:
            return next(self._blocks, None)

    def stop(self) -> None:
        with self._lock:
            self._blocks = iter(())


def row_blocks(info: TensorInfo, rows_bytes: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row, last row + 1): pieces of bounded size that never cross a matrix.

    `rows_bytes` bounds them, ROWS_BYTES by default: the bytes of their rows as F32.
    """
    rows_a_matrix = info.rows // info.matrices
    step = max(1, (rows_bytes or ROWS_BYTES) // (4 * info.row_elements))
    for matrix in range(info.matrices):
        base = matrix * rows_a_matrix
        for start in range(0, rows_a_matrix, step):
            yield matrix, base + start, base + min(start + step, rows_a_matrix)


@dataclass(frozen=True)
class _Block:
    """Rows [start, stop) of a tensor, which lie in one of its matrices."""

    info: TensorInfo
    matrix: int
    start: int
    stop: int


def _is_tame(values: NDArray[np.float32]) -> bool:
    """Whether all are numbers that can be squared; one NaN makes both comparisons false."""
    return bool(values.max() < LARGEST_WEIGHT and values.min() > -LARGEST_WEIGHT)


@dataclass(frozen=True)
class _Encoder:
    """Makes blocks of rows and writes them where they belong; safe in several threads."""

    writer: ShardWriter
    source: TensorSource
    importance: Importance
    stored_types: Mapping[str, str]
    ready: Mapping[str, ReadyTensor]

    def blocks(self, info: TensorInfo) -> Iterator[_Block]:
        """The tensor's blocks: large where they are copied, else such that a core holds them."""
        copied = info.name in self.ready or self.stored_types[info.name] == info.type_name
        size = ROWS_BYTES if copied else min(ROWS_BYTES, ENCODED_ROWS_BYTES)
        return (_Block(info, *block) for block in row_blocks(info, size))

    def encode(self, block: _Block) -> int:
        """Write the block; returns its bytes."""
        info = block.info
        row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
        start, stop = block.start * row_bytes, block.stop * row_bytes
        ready = self.ready.get(info.name)
        if ready is None or not self.writer.copy(info.name, ready, start, stop):
            self.writer.write(info.name, self._made(block), start)
        return stop - start

    def _made(self, block: _Block) -> NDArray[np.uint8]:
        stored_type = self.stored_types[block.info.name]
        rows = (block.start, block.stop)
        return encode_rows(
            self.source, block.info, block.matrix, rows, self.importance, stored_type
        )


def encode_rows(
    source: TensorSource,
    info: TensorInfo,
    matrix: int,
    rows: tuple[int, int],
    importance: Importance,
    stored_type: str,
) -> NDArray[np.uint8]:
    """The bytes of some rows of a tensor in an artifact, shape (rows, bytes a row).

    They are the same whatever other rows are encoded with them. `kernels.prepare` comes first
    where several threads do this.

    Args:
        info: the tensor in its type there.
        matrix: of the tensor, in which the rows lie.
        rows: [start, stop) of the whole tensor.
        importance: of all tensors that have one.
        stored_type: of the tensor in `source`; where it is the same, bytes are taken as they are.

    Raises:
        InputError: a weight is not finite, or too large for the type.
    """
    if stored_type == info.type_name:
        stored = source.read_stored(info.name, *rows)
        if stored is not None:
            return stored
    kind = BY_NAME[info.type_name]
    weights = importance.get(info.name)
    column = None if weights is None else weights[matrix]
    values = source.read_rows(info.name, *rows)
    if not kind.is_quantized or _is_tame(values):  # ggml aborts the process over some others
        with np.errstate(over="ignore"):  # what is infinite as F16 is told below
            made = kernels.quantize(kind, values, column if kind.is_quantized else None)
        if ggml_kernels.is_finite(kind, made):
            return made
    raise InputError(
        f"rows {rows[0]} to {rows[1] - 1} of {info.name} are not finite as {kind.name}: the model "
        "holds NaN, infinities, or weights too large for that type; use another checkpoint of it, "
        "or another type"
    )
