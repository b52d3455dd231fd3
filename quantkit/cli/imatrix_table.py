"""What `quantkit imatrix --show` prints: a table of the layers, and how experts were reached."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.core.console import Console, escape
from quantkit.formats.imatrix_file import Imatrix, read_imatrix
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.imatrix_coverage import ENOUGH_TOKENS as ENOUGH
from quantkit.study.imatrix_coverage import (
    Coverage,
    LayerCoverage,
    coverage_of,
    layer_of,
    percent_text,
    top_weights,
    unseen_text,
    weight_statistics,
)


def show_imatrix(path: Path, model: Path | None, as_json: bool) -> None:
    """Describe the importance matrix in a file.

    Args:
        model: GGUF that it was collected on, which tells the experts of a legacy file apart.

    Raises:
        InputError: one of them cannot be read.
    """
    tensors = () if model is None else GGUFSource(model).tensors
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    coverage = coverage_of(found)
    console = Console(quiet=as_json)
    if as_json:
        console.json(_facts(found, coverage))
        return
    console.line(
        f"{path}: {len(found.entries)} weights, {found.chunks} chunks of {found.chunk_tokens} "
        f"tokens from {', '.join(found.datasets) or 'an unnamed text'}"
    )
    _show_layers(console, found, coverage)
    for sentence in found.unknown:
        console.note(sentence)
    if coverage.experts:
        _show_experts(console, coverage, found.counts_are_exact)
    elif not found.unknown:
        console.line(f"No experts: every weight saw the whole text, {coverage.tokens:,} tokens")


def _facts(found: Imatrix, coverage: Coverage) -> dict[str, Any]:
    exact = found.counts_are_exact
    return {
        "weights": len(found.entries),
        "chunks": found.chunks,
        "chunk_tokens": found.chunk_tokens,
        "datasets": list(found.datasets),
        "counts_are_exact": exact,
        "unknown": list(found.unknown),
        "unseen_experts": {n: entry.unseen for n, entry in found.entries.items() if entry.unseen},
        "coverage": {
            "experts": coverage.experts,
            "reached": coverage.reached(),
            "reached_share": coverage.share(),
            "enough_tokens": ENOUGH,
            "enough_share": coverage.share(ENOUGH) if exact else None,
        },
        "layers": [
            {**asdict(layer), "unseen": layer.unseen, "reached_share": layer.share()}
            for layer in coverage.layers
        ],
        "statistics": [
            {"layer": layer_of(entry.name), **asdict(entry)} for entry in weight_statistics(found)
        ],
    }


def _show_layers(console: Console, found: Imatrix, coverage: Coverage) -> None:
    exact, top = found.counts_are_exact, top_weights(found)
    rows = []
    for layer in coverage.layers:
        weight, share = top[layer.name]
        tokens = f"{layer.tokens:,}" if exact and layer.tokens is not None else "–"
        cells = [escape(layer.name), str(layer.weights), tokens, *_expert_cells(layer, exact)]
        rows.append((*cells, f"{100 * share:3.0f} % {escape(weight)}"))
    columns = (
        "layer", "weights", "tokens", "experts", f"≥ {ENOUGH}", "least", "median", "most",
        "top 1 %",
    )  # fmt: skip
    shown = len(columns) - 1 if exact and coverage.experts else 4 if coverage.experts else 3
    console.table((*columns[:shown], columns[-1]), [(*row[:shown], row[-1]) for row in rows])
    if exact and coverage.experts:
        console.note(f"experts: those that a token reached; ≥ {ENOUGH}: the share with that many")
        console.note("least, median, most: tokens of one expert")
    console.note("top 1 %: their share of the importance, in the layer's most uneven weight")


def _show_experts(console: Console, coverage: Coverage, exact: bool) -> None:
    if coverage.unseen:
        listed = textwrap.wrap(unseen_text(coverage.unseen), 86)
        console.line("Unseen:  " + f"\n{' ' * 9}".join(listed))
    rarest = coverage.rarest()
    if exact and rarest is not None and rarest[2] < ENOUGH:
        where, expert, count = rarest
        console.line(
            f"Rarest:  expert {expert} of layer {where} with {count} token{'s' * (count > 1)}; it "
            f"would have {ENOUGH} with about {-(-ENOUGH // count)} times the text"
        )
    reached = f"{coverage.reached():,} of {coverage.experts:,} reached"
    words = f"{reached} ({percent_text(coverage.share())})"
    if exact:
        enough = percent_text(coverage.share(ENOUGH))
        words += f", {coverage.reached(ENOUGH):,} by {ENOUGH} tokens or more ({enough})"
    console.line(f"Experts: {words}")


def _expert_cells(layer: LayerCoverage, exact: bool) -> list[str]:
    """Seen, share with enough tokens, least, median and most tokens of a layer's experts."""
    experts = sorted(layer.experts)
    if not experts:
        return [""] * 5
    seen = f"{len(experts) - len(layer.unseen)}/{len(experts)}"
    cells = [f"[bold red]{seen}[/]" if layer.unseen else seen]
    if not exact:
        return [*cells, *[""] * 4]
    enough = layer.share(ENOUGH)
    cells.append(f"[yellow]{percent_text(enough)}[/]" if enough < 1 else "100 %")
    middle = (experts[(len(experts) - 1) // 2] + experts[len(experts) // 2]) / 2
    return [*cells, f"{experts[0]:,}", f"{middle:,.0f}", f"{experts[-1]:,}"]
