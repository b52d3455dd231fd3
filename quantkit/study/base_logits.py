"""base.gguf + held-out text → base.logits, the reference of the artifacts' KL divergence.

The base runs once, alone. Finished chunks are kept: an interrupted run resumes with the next chunk
and writes the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.config.recipe import DivergenceRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import publish
from quantkit.core.haystack import haystack_text
from quantkit.core.journal import Journal
from quantkit.core.progress import SILENT, Progress, told_to
from quantkit.formats.logits_file import (
    Logits,
    LogitsHeader,
    Rows,
    encode_rows,
    header_of,
    next_tokens,
    vocabulary_id,
)
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.kl_divergence import blocks

if TYPE_CHECKING:
    from quantkit.llamacpp.llama import Tokens
    from quantkit.llamacpp.text_logits import ChunkLogits

HAYSTACK_NAME = "the haystack"


def held_out_text(path: Path | None) -> str:
    """The text in the file `path`, or the haystack, which shares nothing with the calibration.

    A newline at the file's end is dropped, as by llama-perplexity's `-f`.

    Raises:
        InputError: the file cannot be read as UTF-8 text.
    """
    if path is None:
        return haystack_text()
    try:
        return path.read_bytes().decode("utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
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

    Args:
        work: keeps finished chunks of an interrupted run.

    Raises:
        InputError: llama.cpp cannot load the file, or the text is shorter than one chunk.
        EnvironmentFault: native code crashed, or the logits are not finite.
    """
    held_out_text(text)  # fails before the model is loaded
    growing = work / "base.logits"
    header: LogitsHeader = run_isolated(
        "quantkit.study.base_logits:collect_in_child",
        {"base": base, "recipe": recipe, "text": text, "growing": growing, "devices": devices},
        told_to(progress, "chunks", "base logits"),
    )
    publish(growing, out)
    _journal_path(growing).unlink()
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
    from quantkit.llamacpp.llama import Model
    from quantkit.llamacpp.text_logits import ChunkLogits, first_tokens

    model = Model(base, devices)
    size = recipe.chunk_tokens
    tokens = first_tokens(model.vocab, held_out_text(text), size * recipe.chunks)
    chunks = _chunks(tokens, size, recipe.chunks, emit)
    header = header_of(
        base.name,
        HAYSTACK_NAME if text is None else text.name,
        vocabulary_id(GGUFSource(base).metadata),
        model.vocab.size,
        model.vocab.text_bos,
        chunks,
    )
    journal = Journal(_journal_path(growing), json.dumps(asdict(header)))
    start, row_bytes = header.start_bytes(chunks), header.row_type.itemsize
    written = len(start) + len(journal.lines) * header.rows * row_bytes
    if not growing.exists() or growing.stat().st_size < written:
        journal.forget()
        growing.write_bytes(start)
        written = len(start)
    emit(("start", (len(journal.lines), len(chunks))))
    runner = ChunkLogits(model, size, header.bos)
    with growing.open("r+b") as file, ThreadPoolExecutor(devices.threads) as pool:
        file.truncate(written)
        file.seek(written)
        for index in range(len(journal.lines), len(chunks)):
            for part in _rows(runner, chunks[index], header, pool):
                file.write(part.view(np.uint8).data)
            file.flush()
            os.fsync(file.fileno())
            journal.append(str(index))
            emit(("advance", 1))
    return header


def _chunks(tokens: Tokens, size: int, wanted: int, emit: Emit) -> Tokens:
    """`tokens` as (chunks, chunk tokens)."""
    count = len(tokens) // size
    if count == 0:
        raise InputError(
            f"the held-out text has {len(tokens)} tokens, fewer than one chunk of {size}; give a "
            "longer text or shorter chunks"
        )
    if count < wanted:
        emit(("note", f"the held-out text has only {count} of the requested {wanted} chunks"))
    return tokens[: count * size].reshape(count, size)


def _rows(
    runner: ChunkLogits, chunk: Tokens, header: LogitsHeader, pool: ThreadPoolExecutor
) -> Iterator[Rows]:
    """The rows of a chunk, in blocks."""
    targets = next_tokens(chunk)
    for where, logits in runner.of(chunk):
        expected = targets[where.start : where.stop]

        def work(block: slice, z: Logits = logits, follow: Tokens = expected) -> Rows:
            return encode_rows(z[block], follow[block], header)

        for rows in pool.map(work, blocks(logits)):
            if not np.isfinite(rows["nll"]).all():
                raise EnvironmentFault(
                    f"the logits of {header.model} are not finite, so KLD cannot be measured: the "
                    "file is broken, or this device computes it wrongly"
                )
            yield rows


def _journal_path(growing: Path) -> Path:
    return growing.with_name(growing.name + ".journal")
