"""A comparison as files: HTML, Markdown for a model card, JSON, CSV, and the picture."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.core.files import write_json, write_text
from quantkit.core.units import printable
from quantkit.report.comparison.comparison import (
    Comparison,
    Verdict,
    difference_text,
    relation,
    units_text,
)
from quantkit.report.comparison.evidence import CONFIDENCE as INTERVAL_CONFIDENCE
from quantkit.report.comparison.evidence import LEVEL, Pair, p_text
from quantkit.report.comparison.measured import (
    Measured,
    fine_nats_text,
    ratio_error_text,
    ratio_text,
)
from quantkit.report.comparison.pareto_picture import draw_pareto
from quantkit.report.pages import cells_data, page_environment, picture_url
from quantkit.report.results import installed_versions
from quantkit.report.retrieval import grid_of
from quantkit.retrieval.statistics import CONFIDENCE

SIGN_WORDS = {">": "better", "<": "worse", "≷": "mixed", "≈": "≈"}


def write_comparison(found: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write all files into `folder` and return their paths; no file needs another."""
    picture = folder / "pareto.png"
    draw_pareto(
        found.artifacts, found.front, f"Size against quality: {found.conditions.base}", picture
    )
    values = _page_values(found, picture)
    environment = page_environment()
    environment.filters |= {
        "fine_nats": fine_nats_text,
        "ratio": ratio_text,
        "ratio_error": ratio_error_text,
    }
    page, card = folder / "compare.html", folder / "compare.md"
    for path in (page, card):
        write_text(path, environment.get_template(path.name).render(values))
    facts, table = folder / "compare.json", folder / "compare.csv"
    write_json(facts, comparison_facts(found))
    write_text(table, comparison_csv(found))
    return page, card, facts, table, picture


def _page_values(found: Comparison, picture: Path) -> dict[str, Any]:
    grids = [
        (a.name, grid_of(a.main_answers, a.main_answers[0].task))
        for a in found.artifacts
        if a.main_answers
    ]
    names = [artifact.name for artifact in found.artifacts]
    return {
        "c": found,
        "rows": list(zip(found.artifacts, found.verdicts, strict=True)),
        "names": names,
        "largest": max(artifact.size_bytes for artifact in found.artifacts),
        "units": units_text(found.pairs[0]) if found.pairs else "",
        "picture": picture_url(picture),
        "matrix": [[_cell(found, left, right) for right in names] for left in names],
        "tests": [(pair, _test_rows(pair)) for pair in found.pairs],
        "grids": grids,
        "maps": {"maps": cells_data({f"map-{i}": grid for i, (_, grid) in enumerate(grids)})},
        "versions": installed_versions(),
    }


def _cell(found: Comparison, left: str, right: str) -> dict[str, str]:
    """What the row's artifact is against the column's, and the smallest p behind it."""
    if left == right:
        return {"name": right, "sign": "", "word": "", "p": ""}
    known = relation(found.pairs, left, right)
    pair = next(p for p in found.pairs if {p.first, p.second} == {left, right})
    kinds = known.kinds or tuple(pair.evidence)
    smallest = min(pair.evidence[kind].corrected_p for kind in kinds)
    return {
        "name": right,
        "sign": known.sign,
        "word": SIGN_WORDS[known.sign],
        "p": p_text(smallest),
    }


def _test_rows(pair: Pair) -> list[dict[str, Any]]:
    rows = []
    for kind, found in pair.evidence.items():
        interval = ""
        if found.low is not None and found.high is not None:
            scale = 100 if kind == "same top" else 1
            interval = f"{scale * found.low:+.3g} … {scale * found.high:+.3g}"
        rows.append(
            {
                "test": f"{kind}, %" if kind == "same top" else kind,
                "found": found,
                "difference": difference_text(kind, found, unit=False),
                "interval": interval.replace("-", "−"),
                "p": p_text(found.p).removeprefix("p ").removeprefix("= "),
                "corrected": p_text(found.corrected_p).removeprefix("p ").removeprefix("= "),
            }
        )
    return rows


def comparison_facts(found: Comparison) -> dict[str, Any]:
    """The JSON; units are in the names."""
    conditions = found.conditions
    retrieval = None
    if conditions.context_tokens:
        asked = _fields(conditions, "context_tokens", "needles", "seeds", "kv_type", "haystack")
        retrieval = {**asked, "bound_confidence": CONFIDENCE}
    return {
        "base": conditions.base,
        "reference": found.reference,
        **_fields(conditions, "text", "chunks", "chunk_tokens", "tokens", "base_perplexity"),
        "retrieval": retrieval,
        "level": LEVEL,
        "interval_confidence": INTERVAL_CONFIDENCE,
        "interval_comparisons": max(1, len(found.artifacts) - 1),
        "ordering": {"text": found.ordering.text, **asdict(found.ordering)},
        "smallest_without_measurable_loss": found.smallest,
        "artifacts": [
            _artifact(artifact, verdict, found)
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
            "name": printable(artifact.name),
            "file": printable(artifact.path.name),
            **_fields(artifact, "size_bytes", "bits_per_weight"),
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


def _artifact(artifact: Measured, verdict: Verdict, among: Comparison) -> dict[str, Any]:
    divergence = artifact.divergence
    figures = asdict(divergence) | {"perplexity_ratio": divergence.perplexity_ratio}
    # JSON has no infinity, which a broken model's perplexity may be
    kld = {name: value if math.isfinite(value) else None for name, value in figures.items()}
    return {
        "name": artifact.name,
        "file": artifact.path.name,
        **_fields(artifact, "is_base", "size_bytes", "bits_per_weight"),
        "kld": kld,
        "retrieval": _retrieval(artifact),
        "on_front": artifact.name in among.front,
        "verdict": {"against": among.reference, **_fields(verdict, "outcome", "sentence")},
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
                **_fields(score, "context_tokens", "trials", "hits"),
                **_fields(score, "lower_bound", "upper_bound", "truncated"),
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
        **_fields(pair, "first", "second"),
        "evidence": {kind: asdict(found) for kind, found in pair.evidence.items()},
    }


def _fields(one: object, *names: str) -> dict[str, Any]:
    return {name: getattr(one, name) for name in names}
