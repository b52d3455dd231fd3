"""Artifact + base.logits → the artifact's KL divergence, on text outside the calibration.

Finished chunks are cached: an interrupted run resumes with the next chunk and gives the same
values, and a finished artifact is not run again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import FiniteFloat, TypeAdapter

from quantkit.core.disk import check_room
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import identity
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
    next_tokens,
    vocabulary_id,
)
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.kld_statistics import F64, PositionStatistics, blocks, compare
from quantkit.study.sweep.cuts import cut
from quantkit.study.sweep.sweep import Sweep, Texts

HAYSTACK_NAME = "the haystack"


class LogitsWriter:
    """Writes base.logits, a chunk after the other."""

    def __init__(self, path: Path, header: LogitsHeader, chunks: Tokens, workers: int) -> None:
        size = (
            len(start := header.start_bytes(chunks)) + header.positions * header.row_type.itemsize
        )
        check_room([(path, size)], path.parent)
        self._header, self._chunks = header, chunks
        self._file, self._pool = path.open("wb"), ThreadPoolExecutor(workers)
        self._file.write(start)

    def write(self, chunk: int, parts: Iterable[Logits]) -> None:
        """Append the logits of the scored positions of the next chunk.

        Raises:
            EnvironmentFault: they are not finite.
        """
        follow, header, at = next_tokens(self._chunks[chunk]), self._header, 0
        for logits in parts:
            tokens = follow[at : at + len(logits)]
            at += len(logits)

            def encode(part: slice, z: Logits = logits, follow: Tokens = tokens) -> Rows:
                return encode_rows(z[part], follow[part], header)

            for rows in self._pool.map(encode, blocks(logits)):
                _check_finite(header.model, rows["nll"])
                self._file.write(rows.view(np.uint8).data)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._file.close()
        self._pool.shutdown()


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
            told_to(progress),
        )
        kept = finished_chunks(Journal(cache, purpose), base.header)
    return read_statistics(base, kept)


def compare_in_child(
    logits: Path, model_path: Path, cache: Path, purpose: str, devices: DeviceSettings, emit: Emit
) -> None:
    """Body of the child process of `measure_kld`: a line in `cache` for each chunk.

    A file that this machine cannot hold runs window by window.
    """
    from quantkit.llamacpp.devices import can_hold

    base, journal = LogitsFile(logits), Journal(cache, purpose)
    header = base.header
    source = GGUFSource(model_path)
    size = sum(path.stat().st_size for path in source.paths)
    done = len(journal.lines)
    with ThreadPoolExecutor(devices.threads) as pool:

        def compared(chunk: int, at: range, found: Logits) -> tuple[F64, F64, NDArray[np.bool_]]:
            rows, follow = base.read_rows(chunk, at.start, at.stop), next_tokens(base.tokens[chunk])
            kld, nll = compare(decode_rows(rows), found, follow[at.start : at.stop])
            return kld, nll, found.argmax(axis=1) == rows["kept"][:, 0]

        def keep(chunk: int, pieces: Iterable[tuple[range, Logits]]) -> None:
            parts = [
                part
                for at, found in pieces
                for part in pool.map(
                    lambda b, at=at, z=found: compared(chunk, at[b], z[b]), blocks(found)
                )
            ]
            kld, nll, top = (np.concatenate(column) for column in zip(*parts, strict=True))
            _check_finite(model_path.name, kld, nll)
            line = ChunkValues(kld.tolist(), nll.tolist(), top.astype(int).tolist())
            journal.append(json.dumps(asdict(line)))
            emit(("advance", 1))

        if not can_hold(size, devices):
            windows = cut(source)
            if not windows.is_whole:
                emit(("note", f"{model_path.name} is larger than this machine's memory: its KLD is "
                      "measured layer by layer"))  # fmt: skip
                text = Texts(header.bos, held_out=base.tokens[done:])
                work = cache.with_name(f"{cache.name}.windows")
                work.mkdir(exist_ok=True)
                Sweep(
                    windows, source, text, work, devices, SILENT,
                    on_logits=lambda chunk, found: keep(done + chunk, _placed(found)),
                ).run()  # fmt: skip
                shutil.rmtree(work)
                return
        _compare_loaded(model_path, header, base.tokens, range(done, header.chunks), devices, keep)


def _placed(parts: Iterable[Logits]) -> Iterator[tuple[range, Logits]]:
    """Parts with their indices among the scored positions."""
    at = 0
    for part in parts:
        yield range(at, at + len(part)), part
        at += len(part)


def _compare_loaded(
    path: Path,
    header: LogitsHeader,
    tokens: Tokens,
    chunks: range,
    devices: DeviceSettings,
    keep: Callable[[int, Iterable[tuple[range, Logits]]], None],
) -> None:
    """Give `keep` the logits of `chunks` of the loaded model, piece by piece."""
    from quantkit.llamacpp.llama import ChunkLogits, Model

    model = Model(path, devices)
    if model.vocab.size != header.vocabulary_size:
        raise InputError(
            f"{path.name} has a vocabulary of {model.vocab.size} tokens and {header.model} one of "
            f"{header.vocabulary_size}; compare artifacts of one base"
        )
    runner = ChunkLogits(model, header.chunk_tokens, header.bos)
    for chunk in chunks:
        keep(chunk, runner.of(tokens[chunk]))


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
