"""What the importance matrix is worth: KLD on held-out text at a recipe's lowest level.

Three artifacts of one size, the level's, or the least that can be had without an importance matrix,
which some types need: measured, allocated and quantized with the importance matrix of
the recipe's calibration; the same types without it, where each of them can do without; and
measured, allocated and quantized without it from the start. The KLD is on prose that is no part of
any calibration.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from fetch_smollm2 import fetch, rough_copy
from numpy.typing import NDArray

from quantkit.calibration_sources import resolve_sources
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.models import choose_model, open_source
from quantkit.native.settings import DeviceSettings
from quantkit.quant_types import BY_NAME
from quantkit.recipe import ConvertRecipe, DivergenceRecipe, Recipe, recipe_for
from quantkit.stages.allocate import allocate, smallest_bytes
from quantkit.stages.convert import convert
from quantkit.stages.divergence import measure_divergence
from quantkit.stages.imatrix import collect_imatrix
from quantkit.stages.measure import measure
from quantkit.stages.quantize import overhead_bytes, quantize
from quantkit.values import Divergence

HELD_OUT = DivergenceRecipe(chunk_tokens=512, chunks=48)
Importance = Mapping[str, NDArray[np.float32]]


def importance_table(folder: Path, devices: DeviceSettings) -> list[str]:
    """A row a model: KLD with the importance matrix and without."""
    tokens = HELD_OUT.chunks * HELD_OUT.chunk_tokens
    lines = [
        f"Mean KLD against the base over {tokens:,} tokens of held-out prose, at the recipe's "
        "lowest level, and how often both put the same token first.",
        "",
        "| model, size | calibration | with imatrix | its types without it "
        "| without it from the start |",
        "|---|---|---|---|---|",
    ]
    for name, model, recipe in (
        ("demo", "demo", recipe_for("demo")),
        (
            "SmolLM2-135M, rough",
            str(rough_copy(fetch(folder), folder)),
            recipe_for("", "smollm2-135m"),
        ),
    ):
        lines.append(_row(name, model, recipe, folder / name, devices))
    return lines


def _row(name: str, model: str, recipe: Recipe, folder: Path, devices: DeviceSettings) -> str:
    choice = choose_model(model)
    source = open_source(choice)
    level = min(recipe.levels, key=lambda level: level.bits_per_weight or 99)
    work = folder / "work"
    work.mkdir(parents=True)
    base = folder / "base.gguf"
    if choice.kind == "gguf" and choice.path is not None:
        base = choice.path
    else:
        convert(source, ConvertRecipe(), base, work, devices.threads)
    sources = resolve_sources(recipe.imatrix)
    facts = collect_imatrix(base, recipe.imatrix, sources, folder / "imatrix.gguf", work, devices)
    entries = read_imatrix(folder / "imatrix.gguf").entries
    importance = {name: entry.importance() for name, entry in entries.items()}
    overhead = overhead_bytes("model", source.metadata, source.tensors)
    errors: dict[str, Mapping[str, Mapping[str, float]]] = {}
    for arm, weights in (("with", importance), ("without", {})):
        (folder / arm).mkdir()
        out = folder / arm / "sensitivity.json"
        found = measure(source, weights, recipe.measure, out, out.parent, devices.threads)
        errors[arm] = found.errors
    elements = sum(info.elements for info in source.tensors)
    budget = max(
        int((level.bits_per_weight or 0) * elements / 8),
        overhead + smallest_bytes(source.tensors, errors["without"], level.minimum),
    )
    types = {
        arm: allocate(source.tensors, errors[arm], budget, overhead, level.minimum).types
        for arm in errors
    }

    def kld(arm: str, chosen: Mapping[str, str], weights: Importance) -> Divergence:
        place = folder / f"{arm}-artifact"
        place.mkdir()
        (artifact, *_) = quantize(
            source, source.metadata, chosen, weights, place, place, "model", devices.threads
        )
        found = measure_divergence(base, artifact, HELD_OUT, devices)
        assert found is not None
        return found

    best = kld("with", types["with"], importance)
    plain = kld("without", types["without"], {})
    needed = {kind for kind in types["with"].values() if BY_NAME[kind].needs_imatrix}
    same = f"– ({', '.join(sorted(needed))} need one)"
    if not needed:
        same = _ratio(kld("same", types["with"], {}), best)
    return (
        f"| {name}, {8 * budget / elements:.2f} bits a weight | {facts.tokens:,} tokens "
        f"| {best.mean:.4f}, {best.same_top:.1%} | {same} | {_ratio(plain, best)} |"
    )


def _ratio(other: Divergence, best: Divergence) -> str:
    return f"{other.mean:.4f} ({other.mean / best.mean:.2f} ×), {other.same_top:.1%}"
