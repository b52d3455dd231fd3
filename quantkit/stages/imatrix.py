"""base.gguf + calibration text → imatrix.gguf, llama.cpp's own format.

As llama-imatrix does: the text is cut into chunks of equal length, each starts from an empty
context (with BOS where the model wants it), and all positions give an output, so that the last
layers see every token.
"""

from __future__ import annotations

import functools
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.calibration import (
    RenderChat,
    calibration_files,
    calibration_tokens,
)
from quantkit.chat_template import ChatTemplate
from quantkit.errors import EnvironmentFault, InputError
from quantkit.formats.imatrix_file import Imatrix, ImatrixEntry, write_imatrix
from quantkit.native.child import Emit, run_isolated
from quantkit.native.settings import ContextSettings, DeviceSettings
from quantkit.progress import SILENT, Progress
from quantkit.receipts import atomic
from quantkit.recipe import ImatrixRecipe
from quantkit.sizes import bytes_text, seconds_text

if TYPE_CHECKING:
    from quantkit.native.activations import Collector
    from quantkit.native.llama import Context, Tokens, Vocabulary

SAVE_EVERY_CHUNKS = 16
BATCH_TOKENS = 2048
TRIAL_PAYS = 8
"""Batches from which on one or two more are worth knowing how long all will take."""
LOGITS_BYTES = 512 << 20
"""llama.cpp keeps the logits of a whole batch; more of them than this would not pay."""


@dataclass(frozen=True)
class ImatrixFacts:
    """What was collected: chunks, tokens, weights, and experts that no token reached."""

    chunks: int
    tokens: int
    weights: int
    unseen_experts: int


def chunks_together(chunk_tokens: int, vocabulary: int) -> int:
    """How many chunks are decoded side by side: a power of two, so that saving falls between them.

    The result does not depend on it: each chunk is a sequence of its own.
    """
    together = 1
    while (
        2 * together <= SAVE_EVERY_CHUNKS
        and 2 * together * chunk_tokens <= BATCH_TOKENS
        and 2 * together * chunk_tokens * vocabulary * 4 <= LOGITS_BYTES
    ):
        together *= 2
    return together


def collect_imatrix(
    base: Path,
    recipe: ImatrixRecipe,
    out: Path,
    work: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> ImatrixFacts:
    """Run `base` over the calibration text and write the importance matrix to `out`.

    The sums are saved to `work` every few chunks; a run that was killed goes on there, with the
    same bits as one that was not.

    Raises:
        InputError: the text is shorter than one chunk.
        EnvironmentFault: an activation was NaN or infinite, or native code crashed.
    """
    progress.start(recipe.chunks * recipe.chunk_tokens, "tokens")

    def on_message(message: tuple[str, Any]) -> None:
        kind, value = message
        if kind == "start":
            progress.start(value, "tokens")
        elif kind == "note":
            progress.note(value)
        else:
            progress.advance(value)

    facts: ImatrixFacts = run_isolated(
        "quantkit.stages.imatrix:collect_in_child",
        {
            "base": base,
            "recipe": recipe,
            "out": out,
            "work": work,
            "devices": devices,
        },
        on_message,
    )
    return facts


def collect_in_child(
    base: Path,
    recipe: ImatrixRecipe,
    out: Path,
    work: Path,
    devices: DeviceSettings,
    emit: Emit,
) -> ImatrixFacts:
    """Body of the child process of `collect_imatrix`."""
    from quantkit.native.activations import Collector, Sums
    from quantkit.native.llama import Context, Model

    model = Model(base, devices)
    size = recipe.chunk_tokens
    template = model.chat_template()
    calibration = calibration_tokens(
        recipe,
        functools.partial(model.vocab.tokenize, parse_special=False),
        None if template is None else _renderer(template, model.vocab),
        tokenize_special=model.vocab.tokenize,
    )
    for sentence in calibration.notes:
        emit(("note", sentence))
    # A text gets BOS before it is cut, as llama-imatrix does it; a mixture is cut already.
    tokens = calibration.tokens if recipe.mixture else model.vocab.begun(calibration.tokens)
    chunks = min(recipe.chunks, len(tokens) // size)
    if chunks == 0:
        raise InputError(
            f"the calibration text has {len(tokens)} tokens, fewer than one chunk of {size}; "
            "give a longer text or a smaller chunk_tokens"
        )
    if chunks < recipe.chunks:
        emit(
            ("note", f"the calibration text holds {chunks} of the {recipe.chunks} chunks asked for")
        )
    emit(("start", chunks * size))
    collector = Collector()
    state = work / "sums.npz"
    first = 0
    if state.exists():
        with np.load(state) as saved:
            first = int(saved["next_chunk"])
            for name in saved.files:
                if name.endswith("/squares"):
                    weight = name.removesuffix("/squares")
                    collector.sums[weight] = Sums(saved[name], saved[weight + "/counts"])
        emit(("advance", first * size))
    together = chunks_together(size, model.vocab.size)
    batch = together * size
    settings = ContextSettings(
        batch, batch_tokens=batch, ubatch_tokens=batch, sequences=together, all_outputs=True
    )
    context = Context(model, settings, collector)
    if chunks - first >= TRIAL_PAYS * together:
        emit(("note", _outlook(context, collector, tokens, chunks - first, together, base)))
    for begin in range(first, chunks, together):
        end = min(begin + together, chunks)
        context.clear()
        pieces = tokens[begin * size : end * size].reshape(-1, size)
        context.decode_together([model.vocab.with_bos(piece) for piece in pieces])
        if collector.broken is not None:
            where = f"chunk {end}" if end == begin + 1 else f"chunks {begin + 1} to {end}"
            raise EnvironmentFault(
                f"activations of {collector.broken} became NaN or infinite in {where} of "
                f"{chunks}; what was collected before is kept; check the base model"
            )
        if end % SAVE_EVERY_CHUNKS == 0:
            _save(state, end, collector.sums)
        emit(("advance", (end - begin) * size))
    if not collector.sums:
        raise EnvironmentFault(
            "llama.cpp showed no matrix product of the model's layers; update llama-cpp-python"
        )
    entries = {
        name: ImatrixEntry(sums.squares.astype(np.float32), sums.counts.astype(np.float32))
        for name, sums in collector.sums.items()
    }
    names = tuple(path.name for path in calibration_files(recipe))
    with atomic(out) as partial:
        write_imatrix(partial, Imatrix(entries, size, chunks, names))
    unseen: dict[str, int] = {}  # by layer: the matrices of an expert are reached together
    for name, entry in entries.items():
        layer = ".".join(name.split(".")[:2])
        unseen[layer] = max(unseen.get(layer, 0), entry.unseen)
    return ImatrixFacts(chunks, chunks * size, len(entries), sum(unseen.values()))


def _renderer(template: str, vocabulary: Vocabulary) -> RenderChat:
    texts = (vocabulary.token_text(token) for token in (vocabulary.bos, vocabulary.eos))
    return ChatTemplate(template, *texts).render


def _outlook(
    context: Context, collector: Collector, tokens: Tokens, chunks: int, together: int, base: Path
) -> str:
    """What the run will take, from a trial of one batch whose sums are thrown away."""
    from quantkit.native.activations import Sums

    size = context.settings.context_tokens // together
    before = {name: Sums(s.squares.copy(), s.counts.copy()) for name, s in collector.sums.items()}
    pieces = list(tokens[: together * size].reshape(-1, size))
    context.clear()
    context.decode_together(pieces)  # allocates and reads what a first pass has to
    context.clear()
    began = time.perf_counter()
    context.decode_together(pieces)
    seconds = (time.perf_counter() - began) * chunks / together
    held = sum(entry.squares.nbytes + entry.counts.nbytes for entry in collector.sums.values())
    collector.sums, collector.broken = before, None
    return (
        f"{chunks * size:,} tokens will take about {seconds_text(seconds)} at "
        f"{chunks * size / seconds:,.0f} tokens/s; {bytes_text(base.stat().st_size)} of model and "
        f"{bytes_text(held)} of sums in memory"
    )


def _save(state: Path, next_chunk: int, sums: dict[str, Any]) -> None:
    arrays: dict[str, Any] = {"next_chunk": np.int64(next_chunk)}
    for name, entry in sums.items():
        arrays[name + "/squares"] = entry.squares
        arrays[name + "/counts"] = entry.counts
    growing = state.with_suffix(".new.npz")
    with growing.open("wb") as file:
        np.savez(file, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(growing, state)
