"""report.html and README.md of a build: what was built, how it was checked, how to run it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit.core.files import write_text
from quantkit.report.pages import cells_data, outcome, page_environment, picture_url, shortened
from quantkit.report.results import LevelResult, ReportFacts, read_answers
from quantkit.report.retrieval import Grid, check_text, grid_of
from quantkit.retrieval.results import Answer, Retrieval
from quantkit.study.imatrix import SourceRead
from quantkit.study.imatrix_coverage import ENOUGH_TOKENS, layer_of, percent_text, unseen_text
from quantkit.study.sensitivity import Estimate

COVERAGE_PICTURE = "coverage.png"
MISSES_SHOWN = 40
"""Misses of a level on the page; all are in its niah.jsonl."""


@dataclass(frozen=True)
class LevelPage:
    """What the page shows of a level's retrieval, in the order of its tasks.

    Attributes:
        grids: id of the table → the task's answers.
        names: id of the table → context tokens → what the task is called there.
        misses: the first (answer, outcome, shortened text), longest context first.
        missed: number of all misses.
    """

    grids: dict[str, Grid]
    names: dict[str, dict[int, str]]
    misses: tuple[tuple[Answer, str, str], ...]
    missed: int


def write_report(facts: ReportFacts, folder: Path) -> tuple[Path, ...]:
    """Render both files into `folder` and return their paths.

    The levels' answers are read from the folder; what the page shows lies inside it.
    """
    values, environment = _values(facts, folder), page_environment()
    page, card = folder / "report.html", folder / "README.md"
    for path, template in ((page, "report.html"), (card, "artifacts.md")):
        write_text(path, environment.get_template(template).render(values))
    return page, card


def report_page(facts: ReportFacts, folder: Path) -> str:
    """The content of report.html for the build in `folder`."""
    return page_environment().get_template("report.html").render(_values(facts, folder))


def _values(facts: ReportFacts, folder: Path) -> dict[str, Any]:
    """The variables of both templates."""
    levels = {
        r.name: _level_page(place, r.retrieval, read_answers(folder / r.answers))
        for place, r in enumerate(facts.results)
    }
    return {
        "largest": max(result.size_bytes for result in facts.results),
        "f": facts,
        "versions": facts.versions,
        "levels": levels,
        "what": check_text(facts.results[0].retrieval),
        "tasks": _task_choices(facts.results),
        "data": {"maps": cells_data({k: v for p in levels.values() for k, v in p.grids.items()})},
        "ruled_out": _grouped(facts.ruled_out),
        "sources": [_source_words(source) for source in facts.imatrix.sources],
        "coverage": coverage_values(facts, folder),
        "unweighted": _by_layer(facts.unweighted),
        "costs": _cost_values(facts.dearest),
        "presets": [level.name for level in facts.recipe.levels if level.preset is not None],
    }


def _level_page(place: int, found: Retrieval, answers: Sequence[Answer]) -> LevelPage:
    grids, names = {}, {}
    for number, task in enumerate(dict.fromkeys(score.task for score in found.scores)):
        table = f"map-{place}-{number}"  # a level's name may have signs that an id must not
        grids[table] = grid_of(answers, task)
        scores = [score for score in found.scores if score.task == task]
        names[table] = {s.context_tokens: s.name for s in scores if s.name != task}
    misses = sorted((a for a in answers if not a.hit), key=lambda a: -a.context_tokens)
    return LevelPage(
        grids=grids,
        names=names,
        misses=tuple((a, outcome(a), shortened(a.answer)) for a in misses[:MISSES_SHOWN]),
        missed=len(misses),
    )


def _task_choices(results: Sequence[LevelResult]) -> list[tuple[str, str]]:
    """(task, name at the longest context) of all levels, the main task first."""
    scores = [score for result in results for score in result.retrieval.longest]
    return list({score.task: score.name for score in scores}.items())


def _source_words(source: SourceRead) -> str:
    """`code (12,288 tokens, Apache-2.0 AND MIT)`, without what is not known."""
    origin = source.origin
    known = [] if source.tokens is None else [f"{source.tokens:,} tokens"]
    if origin is not None:
        licence = source.licence or "licence not stated"
        known.append(licence if origin != "disk" else "a file of the one who built it")
    name = origin if origin is not None and origin.startswith("hf://") else source.name
    return f"{name} ({', '.join(known)})" if known else name


def _grouped(ruled_out: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Tensors by kind, layers folded: `blk.*.ffn_down_exps.weight` → types ruled out."""
    grouped: dict[str, tuple[str, ...]] = {}
    for name, types in ruled_out.items():
        parts = name.split(".")
        if parts[0] == "blk":
            parts[1] = "*"
        grouped.setdefault(".".join(parts), types)
    return grouped


def _by_layer(names: Sequence[str]) -> list[str]:
    """Names outside the layers, then one item a layer: `9 tensors of layer 52`."""
    layers = Counter(layer_of(name) for name in names if name.startswith("blk."))
    counted = [f"{n} tensor{'s' * (n > 1)} of layer {layer}" for layer, n in layers.items()]
    return [name for name in names if not name.startswith("blk.")] + counted


def _cost_values(dearest: Sequence[tuple[str, Estimate]]) -> dict[str, Any] | None:
    """The dearest tensors in multiples of the median; None where costs were not measured."""
    if not dearest:
        return None
    middle = dearest[len(dearest) // 2][1].mean
    return {
        "measured": len(dearest),
        "median": middle,
        "shown": [
            (name, cost, cost.mean / middle if middle else 0.0) for name, cost in dearest[:8]
        ],
    }


def coverage_values(facts: ReportFacts, folder: Path) -> dict[str, Any] | None:
    """Figures, unseen experts and picture; None for a model without experts."""
    coverage = facts.coverage
    if not coverage.experts:
        return None
    values: dict[str, Any] = {
        "experts": coverage.experts,
        "layers": len(coverage.expert_layers),
        "reached": coverage.reached(),
        "reached_share": percent_text(coverage.share()),
        "unseen": unseen_text(coverage.unseen),
        "picture": picture_url(folder / COVERAGE_PICTURE),
        "file": COVERAGE_PICTURE,
        "counted": None,
    }
    if facts.counts_are_exact:
        values["counted"] = {
            "enough": ENOUGH_TOKENS,
            "enough_share": percent_text(coverage.share(ENOUGH_TOKENS)),
            "rarest": coverage.rarest(),
        }
    return values
