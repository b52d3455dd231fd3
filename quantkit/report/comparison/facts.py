"""A comparison as JSON, and as CSV with one row an artifact."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

from quantkit.report.comparison.comparison import Comparison
from quantkit.report.comparison.evidence import LEVEL, Evidence, Pair
from quantkit.report.comparison.measured import Measured
from quantkit.report.comparison.ordering import Relation
from quantkit.report.comparison.paired_tests import CONFIDENCE as INTERVAL_CONFIDENCE
from quantkit.report.comparison.verdicts import Verdict
from quantkit.retrieval.statistics import CONFIDENCE


def comparison_facts(found: Comparison) -> dict[str, Any]:
    """The JSON; units are in the names."""
    conditions = found.conditions
    retrieval = None
    if conditions.context_tokens:
        retrieval = {
            "context_tokens": list(conditions.context_tokens),
            "needles": conditions.needles,
            "seeds": list(conditions.seeds),
            "kv_type": conditions.kv_type,
            "haystack": conditions.haystack,
            "bound_confidence": CONFIDENCE,
        }
    return {
        "base": conditions.base,
        "reference": found.reference,
        "text": conditions.text,
        "chunks": conditions.chunks,
        "chunk_tokens": conditions.chunk_tokens,
        "tokens": conditions.tokens,
        "base_perplexity": conditions.base_perplexity,
        "retrieval": retrieval,
        "level": LEVEL,
        "interval_confidence": INTERVAL_CONFIDENCE,
        "interval_comparisons": max(1, len(found.artifacts) - 1),
        "ordering": {
            "text": found.ordering.text,
            "names": list(found.ordering.names),
            "neighbours": [_relation(one) for one in found.ordering.neighbours],
            "beside": [_relation(one) for one in found.ordering.beside],
        },
        "smallest_without_measurable_loss": found.smallest,
        "artifacts": [
            _artifact(artifact, verdict, artifact.name in found.front)
            for artifact, verdict in zip(found.artifacts, found.verdicts, strict=True)
        ],
        "pairs": [_pair(pair) for pair in found.pairs],
    }


def comparison_csv(found: Comparison) -> str:
    """One row an artifact; a column of retrieval for each length, as `hits_8192`."""
    rows = []
    for artifact, verdict in zip(found.artifacts, found.verdicts, strict=True):
        divergence = artifact.divergence
        row: dict[str, Any] = {
            "name": artifact.name,
            "file": artifact.path.name,
            "size_bytes": artifact.size_bytes,
            "bits_per_weight": artifact.bits_per_weight,
            "kld_mean_nats": divergence.mean,
            "kld_error_nats": divergence.mean_error,
            "kld_p999_nats": divergence.p999,
            "same_top": divergence.same_top,
            "perplexity_ratio": divergence.perplexity_ratio,
            "answer_log_probability_nats": artifact.log_probability,
        }
        for score in artifact.main_scores:
            length = score.context_tokens
            row |= {
                f"trials_{length}": score.trials,
                f"hits_{length}": score.hits,
                f"hit_rate_lower_bound_{length}": score.lower_bound,
                f"hit_rate_upper_bound_{length}": score.upper_bound,
                f"answer_log_probability_nats_{length}": score.log_probability,
            }
        for rung in artifact.rungs:
            row |= {
                f"prefill_tokens_per_second_{rung.context_tokens}": rung.prefill_rate,
                f"decode_tokens_per_second_{rung.context_tokens}": rung.decode_rate,
            }
        row |= {
            "on_front": artifact.name in found.front,
            "outcome": verdict.outcome,
            "verdict": verdict.sentence,
        }
        rows.append(row)
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _artifact(artifact: Measured, verdict: Verdict, front: bool) -> dict[str, Any]:
    figures = {
        **asdict(artifact.divergence),
        "perplexity_ratio": artifact.divergence.perplexity_ratio,
    }
    # JSON has no infinity, which a broken model's perplexity may be
    kld = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {
        "name": artifact.name,
        "file": artifact.path.name,
        "is_base": artifact.is_base,
        "size_bytes": artifact.size_bytes,
        "bits_per_weight": artifact.bits_per_weight,
        "kld": kld,
        "retrieval": _retrieval(artifact),
        "on_front": front,
        "verdict": {
            "against": verdict.reference,
            "outcome": verdict.outcome,
            "sentence": verdict.sentence,
        },
    }


def _retrieval(artifact: Measured) -> dict[str, Any] | None:
    if artifact.retrieval is None:
        return None
    return {
        "hits": artifact.hits,
        "trials": len(artifact.main_answers),
        "log_probability_nats": artifact.log_probability,
        "scores": [
            {
                "task": score.name,
                "context_tokens": score.context_tokens,
                "trials": score.trials,
                "hits": score.hits,
                "lower_bound": score.lower_bound,
                "upper_bound": score.upper_bound,
                "truncated": score.truncated,
                "log_probability_nats": score.log_probability,
            }
            for score in artifact.retrieval.scores
        ],
        "speeds": [
            {
                "context_tokens": rung.context_tokens,
                "prefill_tokens_per_second": rung.prefill_rate,
                "decode_tokens_per_second": rung.decode_rate,
            }
            for rung in artifact.rungs
        ],
    }


def _pair(pair: Pair) -> dict[str, Any]:
    return {
        "first": pair.first,
        "second": pair.second,
        "evidence": {kind: _evidence(found) for kind, found in pair.evidence.items()},
        "nearness_to_base": None if pair.nearness is None else _evidence(pair.nearness),
    }


def _evidence(found: Evidence) -> dict[str, Any]:
    return {
        **asdict(found.test),
        "corrected_p": found.corrected_p,
        "best_corrected_p": found.best_corrected_p,
    }


def _relation(found: Relation) -> dict[str, Any]:
    return {**asdict(found), "kinds": list(found.kinds)}
