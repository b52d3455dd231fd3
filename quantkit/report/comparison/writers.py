"""A comparison as files: HTML, Markdown for a model card, JSON, CSV, and the picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.core.files import write_json, write_text
from quantkit.report.comparison.comparison import Comparison
from quantkit.report.comparison.evidence import Evidence, Pair
from quantkit.report.comparison.facts import comparison_csv, comparison_facts
from quantkit.report.comparison.measured import fine_nats_text, ratio_error_text, ratio_text
from quantkit.report.comparison.ordering import Relation, relation
from quantkit.report.comparison.paired_tests import p_text
from quantkit.report.comparison.pareto_picture import draw_pareto
from quantkit.report.comparison.verdicts import difference_text, units_text
from quantkit.report.facts import installed_versions
from quantkit.report.pages import cells_data, page_environment, picture_url
from quantkit.report.retrieval_cells import Grid, grid_of
from quantkit.retrieval.results import MAIN_TASKS

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
        "in_table": lambda text: text.replace("|", "\\|"),
    }
    page, card = folder / "compare.html", folder / "compare.md"
    for path in (page, card):
        write_text(path, environment.get_template(path.name).render(values))
    facts, table = folder / "compare.json", folder / "compare.csv"
    write_json(facts, comparison_facts(found))
    write_text(table, comparison_csv(found))
    return page, card, facts, table, picture


def _page_values(found: Comparison, picture: Path) -> dict[str, Any]:
    grids = _grids(found)
    names = [artifact.name for artifact in found.artifacts]
    return {
        "c": found,
        "rows": list(zip(found.artifacts, found.verdicts, strict=True)),
        "names": names,
        "largest": max(artifact.size_bytes for artifact in found.artifacts),
        "units": units_text(found.pairs[0]) if found.pairs else "",
        "picture": picture_url(picture),
        "lengths": [_length_rows(found, name) for name in names],
        "matrix": [[_cell(found, left, right) for right in names] for left in names],
        "tests": [_test_rows(pair) for pair in found.pairs],
        "grids": grids,
        "maps": {"maps": cells_data({f"map-{i}": grid for i, (_, grid) in enumerate(grids)})},
        "versions": installed_versions(),
    }


def _grids(found: Comparison) -> list[tuple[str, Grid]]:
    """Each artifact's answers to the main task by length and depth."""
    grids = []
    for artifact in found.artifacts:
        tasks = {answer.task for answer in artifact.main_answers}
        grids += [
            (artifact.name, grid_of(artifact.main_answers, task))
            for task in MAIN_TASKS
            if task in tasks
        ]
    return grids


def _length_rows(found: Comparison, name: str) -> list[dict[str, Any]]:
    artifact = next(a for a in found.artifacts if a.name == name)
    rungs = {rung.context_tokens: rung for rung in artifact.rungs}
    rows = []
    for score in artifact.main_scores:
        rung = rungs.get(score.context_tokens)
        rows.append(
            {
                "name": name,
                "score": score,
                "prefill": None if rung is None else rung.prefill_rate,
                "decode": None if rung is None else rung.decode_rate,
            }
        )
    return rows


def _cell(found: Comparison, left: str, right: str) -> dict[str, str]:
    """What the row's artifact is against the column's, and the smallest p behind it."""
    if left == right:
        return {"name": right, "sign": "", "word": "", "p": ""}
    known: Relation = relation(found.pairs, left, right)
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
    rows = [
        _test_row(pair, kind, difference_text(kind, found, unit=False), found)
        for kind, found in pair.evidence.items()
    ]
    if pair.nearness is not None:
        words = difference_text("text", pair.nearness, unit=False)
        rows.append(_test_row(pair, "KLD (no vote)", words, pair.nearness))
    return rows


def _test_row(pair: Pair, test: str, difference: str, found: Evidence) -> dict[str, Any]:
    low, high = found.test.low, found.test.high
    interval = "" if low is None or high is None else f"{low:+.3g} … {high:+.3g}"
    return {
        "first": pair.first,
        "second": pair.second,
        "test": test,
        "difference": difference,
        "value": found.test.difference,
        "interval": interval.replace("-", "−"),
        "gained": found.test.gained,
        "lost": found.test.lost,
        "p": p_text(found.test.p).removeprefix("p ").removeprefix("= "),
        "raw_p": found.test.p,
        "corrected": p_text(found.corrected_p).removeprefix("p ").removeprefix("= "),
        "corrected_p": found.corrected_p,
    }
