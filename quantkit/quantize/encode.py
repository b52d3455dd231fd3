"""Encodes a source's tensors into GGUF files: on all cores, in bounded memory, resumable by tensor.

Every row is encoded on its own, so the bytes depend neither on the number of workers nor on where
an earlier run was interrupted.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, TypeAdapter

from quantkit.core.disk import check_room
from quantkit.core.errors import InputError
from quantkit.core.files import publish
from quantkit.core.progress import Progress
from quantkit.core.units import bytes_text
from quantkit.core.work_folders import Journal
from quantkit.formats.gguf_file import FinishedFile, ReusableTensor, reusable_tensors
from quantkit.formats.gguf_writer import ShardLayout, ShardWriter, open_shard, tensor_size_bytes
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize import kernels
from quantkit.quantize.kernels import simd

ROWS_BYTES = 16 << 20
"""Limit for the rows that one worker holds at a time, as F32."""
ENCODED_ROWS_BYTES = 1 << 20
"""The same for rows that are encoded: they fit a core's cache, and all workers end together."""
LARGEST_VALUES = {"F16": 65504.0, "BF16": 3.3895314e38}
"""The largest finite values of types without blocks."""
LARGEST_WEIGHT = 1e18
"""Limit for values that are encoded: the square of a much larger one is infinite in F32."""
SYNC_BYTES = 64 << 20
SYNC_SECONDS = 10.0
"""What an interrupted run may have to encode again, besides the unfinished tensors."""

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

    Files are written in `work` and moved when complete; an interrupted run resumes at the tensor it
    had reached. A tensor that the source already stores in its new type is copied.

    Args:
        finished: files made from the same source with the same importance; tensors that they hold
            in the new type are copied too. The bytes are the same without them.

    Returns:
        The finished files.

    Raises:
        InputError: a weight is not finite, or too large for its type.
        DiskFullError: the files have no room.
    """
    stored_types = {info.name: info.type_name for info in source.tensors}
    wanted = [info for layout in layouts for info in layout.tensors]
    for kind in {BY_NAME[info.type_name] for info in wanted}:
        if kind.is_quantized:
            kernels.prepare(kind)
    slower = {i.type_name for i in wanted if i.name in importance} & set(simd.KINDS)
    if slower and not (found := simd.finding()).usable:
        progress.note(f"using ggml's own kernels for {', '.join(sorted(slower))}: {found.finding}")
    journals = [_journal(layout, folder, work) for layout in layouts]
    done = {name for journal in journals for name in journal.lines}
    rounding = _Rounding(Journal(work / "rounded", layouts[0].digest), done)
    unfinished = (
        (work / layout.file_name, layout.size_bytes)
        for layout, journal in zip(layouts, journals, strict=True)
        if not _is_whole(layout, journal)
    )
    check_room(unfinished, work)
    sizes = {info.name: tensor_size_bytes(info) for info in wanted}
    before = sum(size for name, size in sizes.items() if name in done)
    progress.start(sum(sizes.values()), "B", done=before)
    encoded = [info for info in wanted if stored_types[info.name] != info.type_name]
    reusable = reusable_tensors(finished, encoded)
    if reusable:
        shared, total = (sum(sizes[name] for name in reusable), sum(sizes.values()))
        progress.note(
            f"{len(reusable)} of {len(encoded)} tensors to encode, {bytes_text(shared)} of "
            f"{bytes_text(total)}, are copied from finished files"
        )
    paths = []
    with ThreadPoolExecutor(workers) as pool:
        for layout, journal in zip(layouts, journals, strict=True):
            path, growing = folder / layout.file_name, work / layout.file_name
            if growing.exists() or not _is_whole(layout, journal):  # else it is published
                with open_shard(growing, layout) as writer:
                    left = [info for info in layout.tensors if info.name not in done]
                    encoder = _Encoder(writer, source, importance, stored_types, reusable, rounding)
                    _encode_all(encoder, left, journal, progress, pool, workers)
                publish(growing, path)
            paths.append(path)
    if rounding.counts:
        kinds = {info.type_name for info in wanted if info.name in rounding.counts}
        elements = sum(info.elements for info in wanted if info.name in rounding.counts)
        progress.note(
            f"{len(rounding.counts)} tensors are rounded to {' and '.join(sorted(kinds))}, which "
            f"does not hold {rounding.counts.total():,} of their {elements:,} values exactly"
        )
    return paths


def _journal(layout: ShardLayout, folder: Path, work: Path) -> Journal:
    """The tensors of a shard that an earlier run finished; none if their file is gone."""
    growing = work / layout.file_name
    journal = Journal(work / f"{layout.file_name}.journal", layout.digest)
    kept = growing.exists() and growing.stat().st_size == layout.size_bytes
    if not kept and not (_is_whole(layout, journal) and (folder / layout.file_name).exists()):
        journal.forget()
    return journal


def _is_whole(layout: ShardLayout, journal: Journal) -> bool:
    """Whether all tensors of a shard are finished; no line says so, since any may be a name."""
    names = {info.name for info in layout.tensors}
    return bool(names) and names.issubset(journal.lines)


def _encode_all(
    encoder: _Encoder,
    tensors: Sequence[TensorInfo],
    journal: Journal,
    progress: Progress,
    pool: ThreadPoolExecutor,
    workers: int,
) -> None:
    """Encode `tensors` as one stream of blocks that the workers take one by one.

    No worker waits for the end of a tensor or for the disk; this thread does. Every SYNC_BYTES or
    SYNC_SECONDS it syncs the file and journals the tensors that are finished.
    """
    blocks = (block for info in tensors for block in encoder.blocks(info))
    taking, stopped = threading.Lock(), threading.Event()
    written = SimpleQueue[tuple[str, int] | None]()

    def take() -> _Block | None:
        with taking:
            return None if stopped.is_set() else next(blocks, None)

    def work() -> None:
        try:
            while (block := take()) is not None:
                written.put((block.info.name, encoder.encode(block)))
        finally:
            stopped.set()  # all blocks are taken, or an error ends the run
            written.put(None)

    left = {info.name: tensor_size_bytes(info) for info in tensors}
    finished = [name for name, size in left.items() if not size]
    unsynced, synced_at = 0, time.monotonic()

    def sync() -> None:
        nonlocal unsynced, synced_at
        encoder.writer.sync()
        encoder.rounding.keep(finished)
        journal.append(*finished)
        finished.clear()
        unsynced, synced_at = 0, time.monotonic()

    running = [pool.submit(work) for _ in range(workers)]
    try:
        working = workers
        while working:
            block = written.get()
            if block is None:
                working -= 1
                continue
            name, size = block
            left[name] -= size
            if not left[name]:
                finished.append(name)
            unsynced += size
            progress.advance(size)
            late = time.monotonic() - synced_at >= SYNC_SECONDS
            if finished and (late or unsynced >= SYNC_BYTES):
                sync()
        for future in running:
            future.result()
        sync()
    finally:  # nothing may write after the file is closed
        stopped.set()
        wait(running)


def row_blocks(info: TensorInfo, rows_bytes: int | None = None) -> Iterator[tuple[int, int, int]]:
    """(matrix, first row, last row + 1) of blocks within one matrix each.

    `rows_bytes`, by default ROWS_BYTES, limits the size of a block as F32.
    """
    if not info.elements:  # llama.cpp reads such tensors too
        return
    matrix_rows = info.rows // info.matrices
    step = max(1, (rows_bytes or ROWS_BYTES) // (4 * info.row_elements))
    for matrix in range(info.matrices):
        base = matrix * matrix_rows
        for start in range(0, matrix_rows, step):
            yield matrix, base + start, base + min(start + step, matrix_rows)


@dataclass(frozen=True)
class _Block:
    """Rows [start, stop) of a tensor, which lie in one of its matrices."""

    info: TensorInfo
    matrix: int
    start: int
    stop: int


class _Rounding:
    """How many values of a tensor its new type rounds, other than by quantizing; thread-safe.

    `journal` keeps it of the tensors that an interrupted run has `done`.
    """

    def __init__(self, journal: Journal, done: Collection[str]) -> None:
        kept = journal.units(TypeAdapter(tuple[str, NonNegativeInt]))
        self.counts = Counter({name: count for name, count in kept if name in done})
        self._journal, self._lock = journal, threading.Lock()

    def count(self, name: str, rounded: int) -> None:
        if rounded:
            with self._lock:
                self.counts[name] += rounded

    def keep(self, finished: Iterable[str]) -> None:
        with self._lock:
            lines = [json.dumps([n, self.counts[n]]) for n in finished if n in self.counts]
        if lines:
            self._journal.append(*lines)


@dataclass(frozen=True)
class _Encoder:
    """Encodes blocks of rows and writes them to their place; thread-safe."""

    writer: ShardWriter
    source: TensorSource
    importance: Importance
    stored_types: Mapping[str, str]
    reusable: Mapping[str, ReusableTensor]
    rounding: _Rounding

    def blocks(self, info: TensorInfo) -> Iterator[_Block]:
        """The tensor's blocks: large if they are copied, small enough for the cache otherwise."""
        copied = info.name in self.reusable or self.stored_types[info.name] == info.type_name
        size = ROWS_BYTES if copied else min(ROWS_BYTES, ENCODED_ROWS_BYTES)
        return (_Block(info, *block) for block in row_blocks(info, size))

    def encode(self, block: _Block) -> int:
        """Write the block; returns its size in bytes."""
        info = block.info
        row_bytes = BY_NAME[info.type_name].size_bytes(info.row_elements)
        start, stop = block.start * row_bytes, block.stop * row_bytes
        reusable = self.reusable.get(info.name)
        if reusable is None or not self.writer.copy(info.name, reusable, start, stop):
            rows, stored_type = (block.start, block.stop), self.stored_types[info.name]
            encoded = encode_rows(
                self.source, info, block.matrix, rows, self.importance, stored_type, self.rounding
            )
            self.writer.write(info.name, encoded, start)
        return stop - start


def encode_rows(
    source: TensorSource,
    info: TensorInfo,
    matrix: int,
    rows: tuple[int, int],
    importance: Importance,
    stored_type: str,
    rounding: _Rounding | None = None,
) -> NDArray[np.uint8]:
    """Rows of a tensor encoded for an artifact, shape (rows, bytes per row).

    They do not depend on which rows are encoded together. With several threads, call
    `kernels.prepare` first.

    Args:
        info: the tensor in its type in the artifact.
        matrix: index of the matrix that the rows belong to.
        rows: [start, stop) in the whole tensor.
        stored_type: type in `source`; if it is the artifact's, the bytes are copied.
        rounding: counts the values that a type without blocks does not hold exactly.

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
    # ggml may abort if a square overflows, or on a NaN, which makes both comparisons false
    if not kind.is_quantized or (values.max() < LARGEST_WEIGHT and values.min() > -LARGEST_WEIGHT):
        with np.errstate(over="ignore"):  # infinities in F16 are reported below
            encoded = kernels.quantize(kind, values, column if kind.is_quantized else None)
        if kind.is_quantized:
            finite, rounded = ggml_kernels.is_finite(kind, encoded), 0
        else:  # ggml's check would print its own line
            held = ggml_kernels.dequantize(kind, encoded, info.row_elements)
            finite, rounded = bool(np.isfinite(held).all()), int(np.count_nonzero(held != values))
        if finite:
            if rounding is not None:
                rounding.count(info.name, rounded)
            return encoded
        if kind.name in LARGEST_VALUES and np.isfinite(values).all():
            worst = values.flat[np.abs(values).argmax()]
            raise InputError(
                f"{info.name} has the value {worst:.6g} in rows {rows[0]} to {rows[1] - 1}: the "
                f"limit of {kind.name} is {LARGEST_VALUES[kind.name]:.6g}; choose a type with a "
                "larger range for it, such as F32"
            )
    raise InputError(
        f"rows {rows[0]} to {rows[1] - 1} of {info.name} are not finite as {kind.name}: the model "
        "has NaN, infinite, or too large weights for that type; use another checkpoint or another "
        "type"
    )
