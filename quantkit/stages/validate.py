"""Retrieval and divergence → validation.json: the release gate and its evidence."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from quantkit.recipe import RetrievalRecipe
from quantkit.retrieval.results import Retrieval
from quantkit.retrieval.statistics import CONFIDENCE
from quantkit.values import Divergence


def validation_json(
    retrieval: Retrieval, divergence: Divergence | None, recipe: RetrievalRecipe, kv_type: str
) -> dict[str, Any]:
    """The content of validation.json; `passed` is the gate's verdict."""
    gate = retrieval.gate
    return {
        "passed": retrieval.passes(recipe.minimum_lower_bound),
        "niah": {
            "mode": f"multikey-{recipe.needles}",
            "context_tokens": gate.context_tokens,
            "trials": gate.trials,
            "hits": gate.hits,
            "lower_bound": gate.lower_bound,
            "confidence": CONFIDENCE,
            "minimum_lower_bound": recipe.minimum_lower_bound,
            "prefill_tokens": retrieval.prefill_tokens,
            "seeds": list(recipe.seeds),
            "kv_type": kv_type,
            "fork_difference": retrieval.fork_difference,
            "truncated": sum(answer.truncated for answer in retrieval.answers),
            "lengths": [asdict(score) for score in retrieval.lengths],
        },
        "kld": None if divergence is None else asdict(divergence),
    }
