"""`quantkit imatrix`: collects an importance matrix, or describes one."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.cli.output_files import check_writable, work_folder
from quantkit.core.console import Console, escape
from quantkit.core.errors import InputError
from quantkit.plan.machine import worker_count

if TYPE_CHECKING:
    from quantkit.study.imatrix_coverage import LayerCoverage


def imatrix(
    model: Path | None,
    out: Path,
    recipe_name: str | None,
    calibration: Sequence[str] | None,
    changes: Mapping[str, int],
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Collect an importance matrix on a GGUF file."""
    from quantkit.config.recipe import recipe_for
    from quantkit.core.files import content_id, identity
    from quantkit.core.work_folders import resumable
    from quantkit.llamacpp.ggml import library_version
    from quantkit.llamacpp.selftest import device_settings
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.study.calibration.sources import local_sources, resolve_sources
    from quantkit.study.imatrix import collect_imatrix

    if model is None:
        raise InputError("give the GGUF file to collect on, or --show FILE to describe an imatrix")
    recipe = recipe_for("default", recipe_name).imatrix.model_copy(update=changes)
    if calibration:
        recipe = recipe.calibrated_on(calibration)
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    read = [path for source in local_sources(recipe) for path in source.files]
    check_writable(out, [*source.paths, *read])
    devices = device_settings(worker_count(workers))
    console = Console(quiet=quiet or as_json)
    parts = {
        "model": identity(source.paths),
        "files": [[path.name, content_id(path)] for path in read],
        "recipe": recipe.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    with resumable(work_folder(out), parts) as work, console.stage("imatrix") as progress:
        sources = resolve_sources(recipe, progress)
        facts = collect_imatrix(model, recipe, sources, out, work, devices, progress)
    if as_json:
        console.json(asdict(facts))
    console.line(f"{out}: {facts.weights} weights, {facts.tokens:,} tokens")


def show_imatrix(path: Path, model: Path | None, as_json: bool) -> None:
    """Describe an imatrix file: layers and weights, how well the experts were reached."""
    from quantkit.formats.imatrix_file import read_imatrix
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.study.imatrix_coverage import ENOUGH_TOKENS as ENOUGH
    from quantkit.study.imatrix_coverage import (
        coverage_of,
        layer_of,
        top_weights,
        unseen_text,
        weight_statistics,
    )
    from quantkit.study.imatrix_coverage import percent_text as percent

    tensors = () if model is None else GGUFSource(model).tensors
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    coverage, exact = coverage_of(found), found.counts_are_exact
    console = Console(quiet=as_json)
    if as_json:
        unseen = {name: entry.unseen for name, entry in found.entries.items() if entry.unseen}
        facts = {
            "weights": len(found.entries),
            "chunks": found.chunks,
            "chunk_tokens": found.chunk_tokens,
            "datasets": list(found.datasets),
            "counts_are_exact": exact,
            "unknown": list(found.unknown),
            "unseen_experts": unseen,
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
                {"layer": layer_of(entry.name), **asdict(entry)}
                for entry in weight_statistics(found)
            ],
        }
        console.json(facts)
        return
    console.line(
        f"{path}: {len(found.entries)} weights, {found.chunks} chunks of {found.chunk_tokens} "
        f"tokens from {', '.join(found.datasets) or 'an unnamed text'}"
    )
    top = top_weights(found)
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
        console.note(f"experts: reached of all; ≥ {ENOUGH} to most: the tokens of an expert")
    console.note(
        "top 1 %: importance in the highest 1 % of columns, for the layer's most uneven weight"
    )
    for sentence in found.unknown:
        console.note(sentence)
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
    if coverage.experts:
        words = (
            f"{coverage.reached():,} of {coverage.experts:,} reached ({percent(coverage.share())})"
        )
        if exact:
            enough = percent(coverage.share(ENOUGH))
            words += f", {coverage.reached(ENOUGH):,} by {ENOUGH} tokens or more ({enough})"
        console.line(f"Experts: {words}")
    elif not found.unknown:
        console.line(f"No experts: every weight saw the whole text, {coverage.tokens:,} tokens")


def _expert_cells(layer: LayerCoverage, exact: bool) -> list[str]:
    """Seen, share with enough tokens, least, median and most tokens of a layer's experts."""
    from quantkit.study.imatrix_coverage import ENOUGH_TOKENS, percent_text

    experts = sorted(layer.experts)
    if not experts:
        return [""] * 5
    seen = f"{len(experts) - len(layer.unseen)}/{len(experts)}"
    cells = [f"[bold red]{seen}[/]" if layer.unseen else seen]
    if not exact:
        return [*cells, *[""] * 4]
    enough = layer.share(ENOUGH_TOKENS)
    cells.append(f"[yellow]{percent_text(enough)}[/]" if enough < 1 else "100 %")
    middle = (experts[(len(experts) - 1) // 2] + experts[len(experts) // 2]) / 2
    return [*cells, f"{experts[0]:,}", f"{middle:,.0f}", f"{experts[-1]:,}"]
