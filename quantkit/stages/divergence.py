"""artifact and base.gguf → how far quantization moved the next-token distribution (KLD)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantkit.native.child import Emit, run_isolated
from quantkit.native.settings import ContextSettings, DeviceSettings
from quantkit.progress import SILENT, Progress
from quantkit.recipe import DivergenceRecipe
from quantkit.values import Divergence


def measure_divergence(
    base: Path,
    model: Path,
    recipe: DivergenceRecipe,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> Divergence | None:
    """KLD of `model` against `base` on prose outside the calibration; None when it is left out."""
    if recipe.chunks == 0:
        return None
    progress.start(recipe.chunks, "chunks", "divergence")
    divergence: Divergence = run_isolated(
        "quantkit.stages.divergence:compare_in_child",
        {"base": base, "model": model, "recipe": recipe, "devices": devices},
        progress.advance,
    )
    return divergence


def compare_in_child(
    base: Path,
    model: Path,
    recipe: DivergenceRecipe,
    devices: DeviceSettings,
    emit: Emit,
) -> Divergence:
    """Body of the child process of `measure_divergence`."""
    from quantkit.native.llama import Context, Model
    from quantkit.retrieval.haystack import haystack_text

    size = recipe.chunk_tokens
    settings = ContextSettings(size, batch_tokens=size, ubatch_tokens=size, all_outputs=True)
    first = Model(base, devices)
    contexts = [Context(first, settings), Context(Model(model, devices), settings)]
    vocab = first.vocab
    characters = 16 * size * recipe.chunks  # no tokenizer makes tokens longer on average
    tokens = vocab.begun(vocab.tokenize(haystack_text()[:characters], parse_special=False))
    losses, tops = [], []
    for index in range(min(recipe.chunks, len(tokens) // size)):
        chunk = tokens[index * size : (index + 1) * size]
        chunk = vocab.with_bos(chunk)
        logs = []
        for context in contexts:
            context.clear()
            logits = context.decode(chunk, 0, want="all").astype(np.float64)
            logits -= logits.max(axis=1, keepdims=True)
            logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
        p, q = logs
        losses.append((np.exp(p) * (p - q)).sum(axis=1))
        tops.append(p.argmax(axis=1) == q.argmax(axis=1))
        emit(1)
    kld = np.maximum(np.concatenate(losses), 0.0)
    return Divergence(
        tokens=int(kld.size),
        mean=float(kld.mean()),
        median=float(np.median(kld)),
        p99=float(np.quantile(kld, 0.99)),
        same_top=float(np.concatenate(tops).mean()),
    )
