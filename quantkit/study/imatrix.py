"""base.gguf + calibration text → imatrix.gguf, llama.cpp's own format.

As in llama-imatrix, the text is cut into chunks of equal length, each starts from an empty context
(with BOS if the model wants it), and every position has an output, so that the last layers see
every token.
"""

from __future__ import annotations

import copy
import hashlib
import math
import time
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.disk import check_room
from quantkit.core.documents import JsonDocument
from quantkit.core.errors import EnvironmentFault
from quantkit.core.files import atomic, file_sha256
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.core.units import bytes_text, seconds_text
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings, parallel_sequences
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.texts import (
    CalibrationSource,
    CalibrationTokens,
    model_calibration,
    whole_chunks,
)
from quantkit.study.imatrix_coverage import coverage_of

if TYPE_CHECKING:
    from quantkit.llamacpp.activations import Collector, Sums
    from quantkit.llamacpp.llama import Context, Model, Tokens

SAVE_EVERY_CHUNKS = 16
BATCH_TOKENS = 8192  # the callback's overhead per token falls with a batch's size (make bench)
TRIAL_CHUNKS = 64  # with so many or more, two chunks are spent to estimate the time of all
LOGITS_BYTES = 512 << 20  # of a batch, which llama.cpp allocates


@dataclass(frozen=True)
class FileRead:
    """A file of a calibration source; `name` has no folders."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceRead:
    """A calibration source as evidence names it, without paths of this machine.

    Attributes:
        origin, licence: see `CalibrationSource`; None if only the name is known.
        tokens: number of tokens used; None if several texts were joined.
    """

    name: str
    origin: str | None = None
    licence: str | None = None
    tokens: int | None = None
    files: tuple[FileRead, ...] = ()


class Calibration(JsonDocument):
    """calibration.json: what the importance matrix was collected on.

    Uncovered experts have fewer tokens than `until_covered`; `ready` names an imported file.
    """

    version: Literal[1] = 1
    chunks: int
    tokens: int
    weights: int
    unseen_experts: int
    uncovered_experts: int = 0
    sources: tuple[SourceRead, ...]
    ready: str | None = None


def chunks_per_batch(chunk_tokens: int, vocabulary: int) -> int:
    """How many chunks are decoded in one batch: a power of two, which divides SAVE_EVERY_CHUNKS.

    The result does not depend on it: each chunk is a sequence of its own.
    """
    fits = LOGITS_BYTES // (4 * chunk_tokens * vocabulary)
    most = min(SAVE_EVERY_CHUNKS, BATCH_TOKENS // chunk_tokens, fits)
    return 1 << max(most.bit_length() - 1, 0)


def collect_imatrix(
    base: Path,
    recipe: ImatrixRecipe,
    sources: Sequence[CalibrationSource],
    out: Path,
    work: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> Calibration:
    """Run `base` over the recipe's `sources` and write the importance matrix to `out`.

    The sums are saved to `work` every few chunks, and an interrupted run resumes from there with
    the same result to the bit.

    Raises:
        InputError: the text is shorter than one chunk.
        EnvironmentFault: an activation was NaN or infinite, or native code crashed.
    """
    progress.start(recipe.chunks * recipe.chunk_tokens, "tokens")
    facts: Calibration = run_isolated(
        "quantkit.study.imatrix:collect_in_child",
        {"base": base, "recipe": recipe, "sources": sources, "out": out}
        | {"work": work, "devices": devices},
        told_to(progress, "tokens"),
    )
    return facts


def collect_in_child(
    base: Path,
    recipe: ImatrixRecipe,
    sources: Sequence[CalibrationSource],
    out: Path,
    work: Path,
    devices: DeviceSettings,
    emit: Emit,
) -> Calibration:
    """Body of the child process of `collect_imatrix`."""
    from quantkit.llamacpp.activations import GROUP_TOKENS, Collector
    from quantkit.llamacpp.llama import Model

    model = Model(base, devices)
    calibration = model_calibration(recipe, sources, model, emit)
    # A text gets BOS before it is cut, as in llama-imatrix; a mixture is cut already.
    tokens = calibration.tokens if recipe.mixture else model.vocab.prepend_bos(calibration.tokens)
    advice = "give a longer text or a smaller chunk_tokens"
    text = whole_chunks(tokens, recipe.chunk_tokens, "the calibration text", advice)
    if len(text) < recipe.chunks:
        note = f"the calibration text has only {len(text)} of the requested {recipe.chunks} chunks"
        emit(("note", note))
    collector = Collector(math.gcd(recipe.chunk_tokens, GROUP_TOKENS))
    state = _State(work / "sums.npz", text, GGUFSource(base).tensors)
    chunks = _collect(model, text, recipe, collector, state, emit)
    if not collector.sums:
        raise EnvironmentFault(
            "llama.cpp reported no matrix product of the model's layers; update llama-cpp-python"
        )
    entries = {
        name: ImatrixEntry(sums.squares.astype(np.float32), sums.counts.astype(np.float32))
        for name, sums in collector.sums.items()
    }
    names = tuple(name for source in sources for name in source.dataset_names)
    coverage = coverage_of(collector.sums)
    with atomic(out) as partial:
        write_imatrix(partial, Imatrix(entries, recipe.chunk_tokens, chunks, names))
    return Calibration(
        chunks=chunks,
        tokens=chunks * recipe.chunk_tokens,
        weights=len(entries),
        unseen_experts=coverage.missed(1),
        uncovered_experts=coverage.missed(recipe.until_covered),
        sources=_read_of(sources, calibration, chunks),
    )


def _read_of(
    sources: Sequence[CalibrationSource], calibration: CalibrationTokens, chunks: int
) -> tuple[SourceRead, ...]:
    taken = calibration.taken_after(chunks)
    return tuple(
        SourceRead(
            Path(source.name).resolve().name if source.origin == "disk" else source.name,
            source.origin,
            source.licence,
            taken.get(source.name),
            tuple(FileRead(p.name, p.stat().st_size, file_sha256(p)) for p in source.files),
        )
        for source in sources
    )


def _collect(
    model: Model,
    chunks: Tokens,
    recipe: ImatrixRecipe,
    collector: Collector,
    state: _State,
    emit: Emit,
) -> int:
    """Run the recipe's chunks through `collector`; returns how many were used."""
    from quantkit.llamacpp.llama import Context, with_first

    available, size = chunks.shape
    begin, stop = state.load(collector), recipe.chunks
    if recipe.until_covered:  # checked where sums are saved, whatever the size of batches
        stop = -(-stop // SAVE_EVERY_CHUNKS) * SAVE_EVERY_CHUNKS
    stop = min(stop, available)
    emit(("start", (begin * size, stop * size)))
    batch = chunks_per_batch(size, model.vocab.size)
    context = Context(model, parallel_sequences(batch, size), collector)
    if stop - begin >= TRIAL_CHUNKS:
        emit(("note", _estimate(context, collector, chunks[0], stop - begin, model.size_bytes)))
    while True:
        if begin >= stop:
            missed = coverage_of(collector.sums).missed(recipe.until_covered)
            if begin == available and missed:
                few = f"{missed:,} experts have fewer than {recipe.until_covered} tokens"
                emit(("note", f"the calibration text ended, and {few}; give more text"))
            if begin == available or not missed:
                return begin
            stop = min(begin + SAVE_EVERY_CHUNKS, available)
            emit(("start", (begin * size, stop * size)))
        end = min(begin + batch, stop)
        context.clear()
        batched = (with_first(chunk, model.vocab.text_bos) for chunk in chunks[begin:end])
        context.decode_together(list(batched))
        if collector.broken is not None:
            where = f"chunk {end}" if end == begin + 1 else f"chunks {begin + 1} to {end}"
            raise EnvironmentFault(
                f"activations of {collector.broken} are NaN or infinite in {where} of {stop}; "
                "check the base model (what was collected before is kept)"
            )
        if end % SAVE_EVERY_CHUNKS == 0:
            state.save(end, collector.sums)
        emit(("advance", (end - begin) * size))
        begin = end


def _estimate(
    context: Context, collector: Collector, chunk: Tokens, chunks: int, model_bytes: int
) -> str:
    """Estimate of time and memory, from a trial of one chunk whose sums are discarded."""
    size, before = len(chunk), copy.deepcopy(collector.sums)
    context.clear()
    context.decode_together([chunk])  # warms up: allocates, reads weights
    context.clear()
    began = time.perf_counter()
    context.decode_together([chunk])
    seconds = (time.perf_counter() - began) * chunks
    held = sum(entry.squares.nbytes + entry.counts.nbytes for entry in collector.sums.values())
    collector.sums, collector.broken = before, None
    return (
        f"{chunks * size:,} tokens take about {seconds_text(seconds)} at "
        f"{chunks * size / seconds:,.0f} tokens/s; {bytes_text(model_bytes)} of model and "
        f"{bytes_text(held)} of sums in memory"
    )


class _State:
    """Saved sums of the first chunks, from which a run on the same ones resumes."""

    def __init__(self, path: Path, chunks: Tokens, tensors: Sequence[TensorInfo]) -> None:
        self._chunks, self._tensors = len(chunks), {info.name: info for info in tensors}
        digest = hashlib.sha256(chunks.astype("<i4").tobytes()).hexdigest()
        self._path, self._text = path, f"{digest} {chunks.shape[1]}"

    def load(self, collector: Collector) -> int:
        """Restore `collector`; returns the number of chunks that it has seen, or 0."""
        from quantkit.llamacpp.activations import Sums

        try:
            with zipfile.ZipFile(self._path) as archive:
                parts = archive.infolist()
            if sum(part.file_size for part in parts) > self._path.stat().st_size:
                return 0
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
                return 0
            with np.load(self._path) as saved:
                found = {name: saved[name] for name in saved.files}
            if not all(isinstance(array, np.ndarray) for array in found.values()):
                return 0
            if str(found.pop("text")) != self._text:
                return 0
            done = int(found.pop("next_chunk"))
            sums = {
                name.removesuffix("/squares"): Sums(array, found[name[:-7] + "counts"])
                for name, array in found.items()
                if name.endswith("/squares")
            }
        except Exception:  # noqa: BLE001 zipfile and numpy raise exceptions of any kind
            return 0  # there are none, or they are damaged
        if not 0 < done <= self._chunks or not all(map(self._is_whole, sums, sums.values())):
            return 0
        collector.sums |= sums
        return done

    def _is_whole(self, name: str, sums: Sums) -> bool:
        """Whether these are sums of one of the model's weights."""
        info = self._tensors.get(name)
        return (
            info is not None
            and sums.squares.shape == (info.matrices, info.row_elements)
            and sums.counts.shape in ((info.matrices,), (1,))
            and sums.squares.dtype == np.float64
            and sums.counts.dtype == np.int64
            and bool(np.isfinite(sums.squares).all())
            and min(sums.squares.min(), sums.counts.min()) >= 0
        )

    def save(self, next_chunk: int, sums: Mapping[str, Sums]) -> None:
        arrays: dict[str, Any] = {"next_chunk": np.int64(next_chunk), "text": np.array(self._text)}
        for name, entry in sums.items():
            arrays[name + "/squares"] = entry.squares
            arrays[name + "/counts"] = entry.counts
        size = sum(array.nbytes for array in arrays.values())
        with atomic(self._path) as partial, partial.open("wb") as file:
            check_room([(partial, size)], self._path.parent)
            np.savez(file, **arrays)
