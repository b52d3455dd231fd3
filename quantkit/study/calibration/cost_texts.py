"""Placeholder until the text for costs is drawn over all domains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.study.calibration.texts import model_calibration, whole_chunks


@dataclass(frozen=True)
class CostText:
    tokens: NDArray[np.int32]
    domains: tuple[str, ...]
    notes: tuple[str, ...]


def cost_chunks(recipe, sources, model, used_chunks, count, size, seed) -> CostText:  # type: ignore
    big = recipe.model_copy(update={"chunks": used_chunks + count, "until_covered": 0})
    found = model_calibration(big, sources, model, lambda _: None).tokens
    chunks = whole_chunks(found, recipe.chunk_tokens, "the calibration text", "give more")
    fresh = chunks[used_chunks : used_chunks + count]
    overlap = min(count - len(fresh), len(chunks) - len(fresh))
    again = chunks[min(used_chunks, len(chunks)) - overlap : min(used_chunks, len(chunks))]
    return CostText(np.concatenate([fresh, again])[:, :size], (), ())
