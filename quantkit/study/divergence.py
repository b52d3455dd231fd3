"""base.gguf + held-out text → base.logits; artifact + base.logits → the artifact's KL divergence.

Each model runs alone. Finished chunks are cached: an interrupted run resumes with the next chunk
and gives the same bytes, and a finished artifact is not run again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter

from quantkit.config.recipe import DivergenceRecipe
from quantkit.core.disk import check_room
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import identity, publish
from quantkit.core.parsing import MOST_TEXT_BYTES, read_bounded
from quantkit.core.paths import haystack_text
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.core.work_folders import Journal
from quantkit.formats.logits_file import (
    Logits,
    LogitsFile,
    LogitsHeader,
    Rows,
    Tokens,
    check_vocabulary,
    decode_rows,
    encode_rows,
    header_of,
    next_tokens,
    vocabulary_id,
)
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.texts import whole_chunks
from quantkit.study.kld_statistics import F64, PositionStatistics, blocks, compare

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import ChunkLogits

HAYSTACK_NAME = "the haystack"
T = TypeVar("T")
Work = Callable[[range, Logits, Tokens], T]
"""Of some scored positions, their logits and the tokens that follow; on several threads."""


@dataclass(frozen=True)
class ChunkValues:
    """A line of the cache: a chunk's values at its scored positions; `same_top` is 0 or 1."""

    kld: list[FiniteFloat]
    nll: list[FiniteFloat]
    same_top: list[Literal[0, 1]]


def held_out_text(path: Path | None) -> str:
    """The text in the file `path`, or the haystack, which shares nothing with the calibration.

    A newline at the file's end is dropped, as by llama-perplexity's `-f`.

    Raises:
        InputError: the file cannot be read as UTF-8 text.
    """
    if path is None:
        return haystack_text()
    try:
        return read_bounded(path, MOST_TEXT_BYTES).decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read the text {path}: {error}") from None


def collect_base_logits(
    base: Path,
    recipe: DivergenceRecipe,
    text: Path | None,
    out: Path,
    work: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> LogitsHeader:
    """Run `base` on `text` (None: the haystack) and write its logits to `out`.

    `work` keeps finished chunks of an interrupted run.

    Raises:
        InputError: llama.cpp cannot load the file, or the text is shorter than one chunk.
        EnvironmentFault: native code crashed, or the logits are not finite.
    """
    held_out_text(text)  # fails before the model is loaded
    growing = work / "base.logits"
    header: LogitsHeader = run_isolated(
        "quantkit.study.divergence:collect_in_child",
        {"base": base, "recipe": recipe, "text": text, "growing": growing, "devices": devices},
        told_to(progress, "chunks", "base logits"),
    )
    publish(growing, out)
    growing.with_suffix(".logits.journal").unlink()
    return header


def collect_in_child(
    base: Path,
    recipe: DivergenceRecipe,
    text: Path | None,
    growing: Path,
    devices: DeviceSettings,
    emit: Emit,
) -> LogitsHeader:
    """Body of the child process of `collect_base_logits`."""
    from quantkit.llamacpp.llama import ChunkLogits, Model

    model, size = Model(base, devices), recipe.chunk_tokens
    tokens = model.vocab.first_tokens(held_out_text(text), size * recipe.chunks)
    advice = "give a longer text or shorter chunks"
    chunks = whole_chunks(tokens, size, "the held-out text", advice)
    if len(chunks) < recipe.chunks:
        note = f"the held-out text has only {len(chunks)} of the requested {recipe.chunks} chunks"
        emit(("note", note))
    name = HAYSTACK_NAME if text is None else text.name
    vocabulary = vocabulary_id(GGUFSource(base).metadata)
    vocab = model.vocab
    header = header_of(base.name, name, vocabulary, vocab.size, vocab.text_bos, chunks)
    journal = Journal(growing.with_suffix(".logits.journal"), json.dumps(asdict(header)))
    start, row_bytes = header.start_bytes(chunks), header.row_type.itemsize
    chunk_bytes = header.rows * row_bytes
    check_room([(growing, len(start) + len(chunks) * chunk_bytes)], growing.parent)
    written = len(start) + len(journal.lines) * chunk_bytes
    counted = journal.lines == [str(index) for index in range(len(journal.lines))]
    if not counted or len(journal.lines) > len(chunks) or not _begins(growing, start, written):
        journal.forget()
        growing.write_bytes(start)
        written = len(start)
    emit(("start", (len(journal.lines), len(chunks))))
    runner = ChunkLogits(model, size, header.bos)

    def encode(_at: range, logits: Logits, follow: Tokens) -> Rows:
        return encode_rows(logits, follow, header)

    with growing.open("r+b") as file, ThreadPoolExecutor(devices.threads) as pool:
        file.truncate(written)
        file.seek(written)
        for index in range(len(journal.lines), len(chunks)):
            for rows in _by_blocks(runner, chunks[index], pool, encode):
                _check_finite(base.name, rows["nll"])
                file.write(rows.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
            journal.append(str(index))
            emit(("advance", 1))
    return header


def _begins(growing: Path, start: bytes, size_bytes: int) -> bool:
    """Whether the file has `start` and as many bytes as were finished."""
    if not growing.exists() or growing.stat().st_size < size_bytes:
        return False
    with growing.open("rb") as file:
        return file.read(len(start)) == start


def _by_blocks(
    runner: ChunkLogits, chunk: Tokens, pool: ThreadPoolExecutor, work: Work[T]
) -> Iterator[T]:
    """What `work` gives for blocks of a chunk's scored positions, in order."""
    follow = next_tokens(chunk)
    for at, logits in runner.of(chunk):
        yield from pool.map(
            lambda b, at=at, z=logits: work(at[b], z[b], follow[at[b]]), blocks(logits)
        )


def _check_finite(name: str, *values: NDArray[np.float64]) -> None:
    if not all(np.isfinite(value).all() for value in values):
        raise EnvironmentFault(
            f"the logits of {name} are not finite, so its KLD cannot be measured: the file is "
            "broken, or this device computes it wrongly"
        )


def measure_kld(
    logits: Path,
    model: Path,
    cache: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> PositionStatistics:
    """Compare `model` with the base's `logits` on the same tokens, at every scored position.

    The file `cache` keeps the values of finished chunks.

    Raises:
        InputError: llama.cpp cannot load the model, or its vocabulary is not the base's.
        EnvironmentFault: native code crashed, or the logits are not finite.
    """
    base, source = LogitsFile(logits), GGUFSource(model)
    found = vocabulary_id(source.metadata)
    check_vocabulary(model.name, found, base.header.model, base.header.vocabulary)
    purpose = json.dumps([asdict(base.header), identity([logits, *source.paths])])
    journal = Journal(cache, purpose)
    try:
        kept = finished_chunks(journal, base.header)
    except InputError:  # damaged, or of more chunks than there are
        journal.forget()
        kept = []
    progress.start(base.header.chunks, "chunks", "KLD", done=len(journal.lines))
    if len(journal.lines) < base.header.chunks:
        arguments = {"logits": logits, "model_path": model, "cache": cache, "purpose": purpose}
        run_isolated(
            "quantkit.study.divergence:compare_in_child",
            arguments | {"devices": devices},
            progress.advance,
        )
        kept = finished_chunks(Journal(cache, purpose), base.header)
    return read_statistics(base, kept)


def compare_in_child(
    logits: Path, model_path: Path, cache: Path, purpose: str, devices: DeviceSettings, emit: Emit
) -> None:
    """Body of the child process of `measure_kld`: a line in `cache` for each chunk."""
    from quantkit.llamacpp.llama import ChunkLogits, Model

    base = LogitsFile(logits)
    header = base.header
    model = Model(model_path, devices)
    if model.vocab.size != header.vocabulary_size:
        raise InputError(
            f"{model_path.name} has a vocabulary of {model.vocab.size} tokens and {header.model} "
            f"one of {header.vocabulary_size}; compare artifacts of one base"
        )
    journal = Journal(cache, purpose)
    runner = ChunkLogits(model, header.chunk_tokens, header.bos)
    with ThreadPoolExecutor(devices.threads) as pool:
        for index in range(len(journal.lines), header.chunks):

            def compared(
                at: range, logits: Logits, follow: Tokens, chunk: int = index
            ) -> tuple[F64, F64, NDArray[np.bool_]]:
                rows = base.read_rows(chunk, at.start, at.stop)
                kld, nll = compare(decode_rows(rows), logits, follow)
                return kld, nll, logits.argmax(axis=1) == rows["kept"][:, 0]

            parts = list(_by_blocks(runner, base.tokens[index], pool, compared))
            kld, nll, top = (np.concatenate(column) for column in zip(*parts, strict=True))
            _check_finite(model_path.name, kld, nll)
            line = ChunkValues(kld.tolist(), nll.tolist(), top.astype(int).tolist())
            journal.append(json.dumps(asdict(line)))
            emit(1)


def finished_chunks(journal: Journal, header: LogitsHeader) -> list[ChunkValues]:
    """The values of the chunks that the cache holds.

    Raises:
        InputError: a line is damaged, or there are more than the base has chunks.
    """

    def is_whole(found: ChunkValues) -> bool:
        return len(found.kld) == len(found.nll) == len(found.same_top) == header.rows

    found = journal.units(TypeAdapter(ChunkValues), is_whole)
    if len(found) > header.chunks:
        raise InputError(f"{journal.path} has more than {header.chunks} chunks; delete it")
    return found


def read_statistics(base: LogitsFile, chunks: Sequence[ChunkValues]) -> PositionStatistics:
    """The values of the finished `chunks`, with the base's."""
    rows = base.header.rows
    base_nll = [base.read_rows(index, 0, rows)["nll"] for index in range(len(chunks))]
    return PositionStatistics(
        np.concatenate([chunk.kld for chunk in chunks]),
        np.concatenate([chunk.nll for chunk in chunks]),
        np.concatenate(base_nll),
        np.concatenate([chunk.same_top for chunk in chunks]).astype(bool),
    )
