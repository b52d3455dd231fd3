"""artifact + base.logits → KL divergence of the artifact's next-token distribution.

The artifact runs alone. Finished chunks are cached: an interrupted run resumes with the next chunk,
and a finished artifact is not run again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import identity
from quantkit.core.journal import Journal
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.logits_file import (
    Logits,
    LogitsFile,
    check_vocabulary,
    decode_rows,
    vocabulary_id,
)
from quantkit.llamacpp.child import Emit, run_isolated
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.kl_divergence import blocks, compare
from quantkit.study.kld_statistics import PositionStatistics

if TYPE_CHECKING:
    from quantkit.llamacpp.text_logits import ChunkLogits


def measure_kld(
    logits: Path,
    model: Path,
    cache: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> PositionStatistics:
    """Compare `model` with the base's `logits` on the same tokens, at every scored position.

    Args:
        cache: file for the values of finished chunks.

    Raises:
        InputError: llama.cpp cannot load the model, or its vocabulary is not the base's.
        EnvironmentFault: native code crashed, or the logits are not finite.
    """
    base = LogitsFile(logits)
    source = GGUFSource(model)
    found = vocabulary_id(source.metadata)
    check_vocabulary(model.name, found, base.header.model, base.header.vocabulary)
    purpose = json.dumps([asdict(base.header), identity([logits, *source.paths])])
    done = Journal(cache, purpose).lines
    progress.start(base.header.chunks, "chunks", "KLD", done=len(done))
    if len(done) < base.header.chunks:
        run_isolated(
            "quantkit.study.artifact_kld:compare_in_child",
            {
                "logits": logits,
                "model_path": model,
                "cache": cache,
                "purpose": purpose,
                "devices": devices,
            },
            progress.advance,
        )
    return read_statistics(base, Journal(cache, purpose).lines)


def compare_in_child(
    logits: Path, model_path: Path, cache: Path, purpose: str, devices: DeviceSettings, emit: Emit
) -> None:
    """Body of the child process of `measure_kld`: a line in `cache` for each chunk."""
    from quantkit.llamacpp.llama import Model
    from quantkit.llamacpp.text_logits import ChunkLogits

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
            parts = list(_chunk(runner, base, index, pool))
            kld, nll, top = (np.concatenate(column) for column in zip(*parts, strict=True))
            if not (np.isfinite(kld).all() and np.isfinite(nll).all()):
                raise EnvironmentFault(
                    f"the logits of {model_path.name} are not finite, so its KLD cannot be "
                    "measured: the file is broken, or this device computes it wrongly"
                )
            line = {"kld": kld.tolist(), "nll": nll.tolist(), "same_top": top.astype(int).tolist()}
            journal.append(json.dumps(line))
            emit(1)


def _chunk(
    runner: ChunkLogits, base: LogitsFile, index: int, pool: ThreadPoolExecutor
) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]]:
    """KLD, NLL and whether the top tokens are the same, by blocks of a chunk's positions."""
    targets = base.targets(index)
    for where, logits in runner.of(base.tokens[index]):

        def work(
            block: slice, first: int = where.start, found: Logits = logits
        ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.bool_]]:
            z = found[block]
            start, stop = first + block.start, first + block.start + len(z)
            rows = base.read_rows(index, start, stop)
            result = compare(decode_rows(rows), z, targets[start:stop])
            return result.kld, result.nll, z.argmax(axis=1) == rows["kept"][:, 0]

        yield from pool.map(work, blocks(logits))


def read_statistics(base: LogitsFile, lines: list[str]) -> PositionStatistics:
    """The values in the cached `lines` of finished chunks, with the base's."""
    chunks = [json.loads(line) for line in lines]
    kld, nll, top = (
        np.concatenate([np.asarray(chunk[name]) for chunk in chunks])
        for name in ("kld", "nll", "same_top")
    )
    rows = base.header.rows
    base_nll = [base.read_rows(index, 0, rows)["nll"] for index in range(len(chunks))]
    return PositionStatistics(kld, nll, np.concatenate(base_nll), top.astype(bool))
