"""artifact and base.gguf → how far quantization moved the next-token distribution (KLD)."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from quantkit.kld import BaseDistribution
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
    with ThreadPoolExecutor(devices.threads) as pool:
        for index in range(min(recipe.chunks, len(tokens) // size)):
            chunk = vocab.with_bos(tokens[index * size : (index + 1) * size])
            runs = []
            for context in contexts:
                context.clear()
                runs.append(context.decode(chunk, 0, want="all"))
            expected, found = runs
            losses.append(BaseDistribution.of(expected).divergence(found, pool))
            tops.append(expected.argmax(axis=1) == found.argmax(axis=1))
            emit(1)
    kld = np.concatenate(losses)
    return Divergence(
        tokens=int(kld.size),
        mean=float(kld.mean()),
        median=float(np.median(kld)),
        p99=float(np.quantile(kld, 0.99)),
        same_top=float(np.concatenate(tops).mean()),
    )
