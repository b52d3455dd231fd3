"""Everything → report.html and README.md: what was built, how it was checked, how to run it."""

from __future__ import annotations

import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.coverage import ENOUGH_TOKENS, Coverage, layer_of, percent_text, unseen_text
from quantkit.pages import cells_data, outcome, page_environment, picture_url, shortened
from quantkit.receipts import write_text
from quantkit.recipe import Recipe
from quantkit.results import LevelResult, LevelRetrieval, read_answers
from quantkit.retrieval.cells import Grid, grid_of
from quantkit.retrieval.results import Answer, Rung
from quantkit.retrieval.words import check_text, cost_text, forks_text, gate_text, rate_text
from quantkit.target import Target

COVERAGE_PICTURE = "coverage.png"
VERSIONS_OF = ("llama-cpp-python", "gguf", "numpy", "scipy")
MISSES_SHOWN = 40
"""Of a level; the others are in its niah.jsonl."""


@dataclass(frozen=True)
class ReportFacts:
    """What the templates show.

    Attributes:
        kv_type: of the retrieval check.
        imatrix: chunks, tokens, weights, unseen_experts, sources; ready, the name of the file
            that was taken instead of collecting.
        ruled_out: tensors whose row length excludes some types → those types.
        coverage: of the imatrix; its picture is in the folder where there are experts.
        counts_are_exact: whether its tokens are, or only whether there were any.
        unweighted: quantized tensors without statistics.
        dearest: all that costs were measured of, with the KLD of an error of 1 %; dearest first.
    """

    model: str
    architecture: str
    parameters: int
    target: Target
    recipe: Recipe
    results: tuple[LevelResult, ...]
    imatrix: Mapping[str, Any]
    kv_type: str
    ruled_out: Mapping[str, list[str]]
    coverage: Coverage
    counts_are_exact: bool
    unweighted: tuple[str, ...]
    dearest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class LevelPage:
    """What the page shows of a level's retrieval, in the order of its tasks.

    Attributes:
        grids: id of the table → the task's answers.
        names: id of the table → context tokens → what the task is called there.
        misses: (answer, outcome, its text), longest context first.
        missed: how many there are in all.
        rungs: with (prefill, decode) in tokens a second.
    """

    grids: dict[str, Grid]
    names: dict[str, dict[int, str]]
    misses: tuple[tuple[Answer, str, str], ...]
    missed: int
    rungs: tuple[tuple[Rung, float | None, float | None], ...]
    gate: str
    cost: str
    forks: str


def write_report(facts: ReportFacts, folder: Path) -> tuple[Path, ...]:
    """Render both files into `folder` and return their paths.

    The levels' answers are read from the folder; what the page shows lies inside it.
    """
    environment = page_environment()
    environment.filters["rate"] = rate_text
    versions = {"quantkit": __version__}
    versions |= {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    levels = {
        r.name: _level_page(place, r.retrieval, read_answers(folder / r.answers))
        for place, r in enumerate(facts.results)
    }
    values = {
        "largest": max((result.size_bytes for result in facts.results), default=0),
        "f": facts,
        "versions": versions,
        "levels": levels,
        "what": check_text(facts.recipe.retrieval, facts.kv_type),
        "tasks": _task_choices(facts.results),
        "data": {"maps": cells_data({k: v for p in levels.values() for k, v in p.grids.items()})},
        "ruled_out": _grouped(facts.ruled_out),
        "sources": [_source_words(source) for source in facts.imatrix["sources"]],
        "coverage": _coverage_values(facts, folder),
        "unweighted": _by_layer(facts.unweighted),
        "costs": _cost_values(facts.dearest),
        "presets": [level.name for level in facts.recipe.levels if level.preset is not None],
    }
    written = []
    for template, name in (("report.html", "report.html"), ("artifacts.md", "README.md")):
        path = folder / name
        write_text(path, environment.get_template(template).render(values))
        written.append(path)
    return tuple(written)


def _level_page(place: int, found: LevelRetrieval, answers: Sequence[Answer]) -> LevelPage:
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
        rungs=tuple((r, r.prefill_rate, r.decode_rate) for r in found.rungs),
        gate=gate_text(
            found.gated, found.minimum_lower_bound, found.confidence, clustered=found.clustered
        ),
        cost=cost_text(
            found.prefill_tokens, found.question_tokens, found.classic_tokens, forked=found.forked
        ),
        forks=forks_text(found.fork_difference, found.rungs) if found.forked else "",
    )


def _task_choices(results: Sequence[LevelResult]) -> list[tuple[str, str]]:
    """(task, name at the longest context) of all levels, the main task first."""
    scores = [score for result in results for score in result.retrieval.longest]
    return list({score.task: score.name for score in scores}.items())


def _source_words(source: Mapping[str, Any]) -> str:
    """`code (12,288 tokens, Apache-2.0 AND MIT)`: as much as is known."""
    tokens, origin = source.get("tokens"), source.get("origin")
    known = [] if tokens is None else [f"{tokens:,} tokens"]
    if origin is not None:
        licence = source.get("licence") or "licence not stated"
        known.append(licence if origin != "disk" else "a file of the one who built it")
    name = origin if origin is not None and origin.startswith("hf://") else source["name"]
    return f"{name} ({', '.join(known)})" if known else str(name)


def _grouped(ruled_out: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """Tensors by kind, layers folded: `blk.*.ffn_down_exps.weight` → types ruled out."""
    grouped: dict[str, list[str]] = {}
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


def _cost_values(dearest: Sequence[tuple[str, float]]) -> dict[str, Any] | None:
    """The dearest tensors in multiples of the median; None where costs were not measured."""
    if not dearest:
        return None
    middle = dearest[len(dearest) // 2][1]
    return {
        "measured": len(dearest),
        "median": middle,
        "shown": [(name, cost, cost / middle if middle else 0.0) for name, cost in dearest[:8]],
    }


def _coverage_values(facts: ReportFacts, folder: Path) -> dict[str, Any] | None:
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
