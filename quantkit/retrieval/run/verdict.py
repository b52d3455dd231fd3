"""Retrieval, divergence and the artifact's own weights → validation.json: the release gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.quantize.integrity import Integrity
from quantkit.retrieval.results import Retrieval
from quantkit.retrieval.statistics import CONFIDENCE
from quantkit.study.kld_statistics import KLDStatistics


def validation_json(
    retrieval: Retrieval,
    divergence: KLDStatistics | None,
    recipe: RetrievalRecipe,
    kv_type: str,
    integrity: Integrity | None = None,
    artifact: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The content of validation.json; `passed` is the gate's verdict.

    Args:
        artifact: name of each of its files → SHA-256, so that the verdict is of no other; None
            where they are not known.
        kv_type: of the check; `as served` where a server has its own.
        integrity: what was compared with the model that the artifact was made from.
    """
    gate = retrieval.gated(recipe.gated)
    first = gate[0]
    return {
        "passed": retrieval.passes(recipe.gated, recipe.minimum_lower_bound),
        "niah": {
            "mode": first.name,
            "one_pass": retrieval.mode == "one-pass",
            "context_tokens": first.context_tokens,
            "trials": first.trials,
            "hits": first.hits,
            "lower_bound": first.lower_bound,
            "confidence": CONFIDENCE,
            "minimum_lower_bound": recipe.minimum_lower_bound,
            "gate": list(recipe.gated),
            "prefill_tokens": retrieval.prefill_tokens,
            "question_tokens": retrieval.question_tokens,
            "classic_tokens": retrieval.classic_tokens,
            "forked": retrieval.forked,
            "fork_difference": retrieval.fork_difference,
            "seeds": list(recipe.seeds),
            "clustered": recipe.clustered,
            "kv_type": kv_type,
            "thinking": recipe.thinking,
            "tasks": [{"name": score.name, **asdict(score)} for score in retrieval.scores],
            "rungs": [asdict(rung) for rung in retrieval.rungs],
            "memory": [asdict(use) for use in retrieval.memory],
        },
        "kld": None if divergence is None else asdict(divergence),
        "integrity": None if integrity is None else asdict(integrity),
        "artifact": None if artifact is None else dict(artifact),
    }
