"""Everything → report.html and README.md: what was built, how it was checked, how to run it."""

from __future__ import annotations

import base64
import importlib.metadata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantkit import __version__
from quantkit.coverage import ENOUGH_TOKENS, Coverage, layer_of, percent_text, unseen_text
from quantkit.receipts import write_text
from quantkit.recipe import Recipe
from quantkit.resources import TEMPLATES
from quantkit.results import LevelResult
from quantkit.retrieval.heatmap import length_text
from quantkit.sizes import gb_text, gib_text
from quantkit.target import Target

COVERAGE_PICTURE = "coverage.png"
VERSIONS_OF = ("llama-cpp-python", "gguf", "numpy", "scipy")


@dataclass(frozen=True)
class ReportFacts:
    """What the templates show.

    Attributes:
        kv_type: of the retrieval check.
        imatrix: chunks, tokens, weights, unseen_experts.
        ruled_out: tensors whose row length excludes some types → those types.
        coverage: of the imatrix; its picture is in the folder where there are experts.
        unweighted: quantized tensors without statistics.
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
    unweighted: tuple[str, ...]


def write_report(facts: ReportFacts, folder: Path) -> tuple[Path, ...]:
    """Render both files into `folder` and return their paths; pictures lie inside the page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["gib"] = gib_text
    environment.filters["gb"] = gb_text
    environment.filters["percent"] = lambda share: f"{100 * share:.1f} %"
    environment.filters["length"] = length_text
    versions = {"quantkit": __version__}
    versions |= {name: importlib.metadata.version(name) for name in VERSIONS_OF}
    values = {
        "f": facts,
        "versions": versions,
        "pictures": {r.name: _data_url(folder / r.heatmap) for r in facts.results},
        "ruled_out": _grouped(facts.ruled_out),
        "coverage": _coverage_values(facts.coverage, folder),
        "unweighted": _by_layer(facts.unweighted),
    }
    written = []
    for template, name in (("report.html", "report.html"), ("artifacts.md", "README.md")):
        path = folder / name
        write_text(path, environment.get_template(template).render(values))
        written.append(path)
    return tuple(written)


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode("ascii")


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


def _coverage_values(coverage: Coverage, folder: Path) -> dict[str, Any] | None:
    """Figures, unseen experts and picture; None for a model without experts."""
    if not coverage.experts:
        return None
    return {
        "picture": _data_url(folder / COVERAGE_PICTURE),
        "file": COVERAGE_PICTURE,
        "experts": coverage.experts,
        "layers": len(coverage.expert_layers),
        "reached": coverage.reached(),
        "reached_share": percent_text(coverage.share()),
        "enough": ENOUGH_TOKENS,
        "enough_share": percent_text(coverage.share(ENOUGH_TOKENS)),
        "unseen": unseen_text(coverage.unseen),
        "rarest": coverage.rarest(),
    }
