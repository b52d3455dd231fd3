"""A model made ready once for several benchmarks: imatrix, sensitivity, the base's logits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fetch_smollm2 import fetch, rough_copy
from quantkit.study.costs import CostInputs

from quantkit.config.recipe import DivergenceRecipe, Recipe, recipe_for
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.models.model import Model
from quantkit.quantize.encode import Importance
from quantkit.quantize.quantize import convert, quantize
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.divergence import collect_base_logits, measure_kld
from quantkit.study.imatrix import Calibration, collect_imatrix
from quantkit.study.kld_statistics import KLDStatistics
from quantkit.study.run import measure
from quantkit.study.sensitivity import Sensitivity

HELD_OUT = DivergenceRecipe(chunk_tokens=512, chunks=12)
_serial = itertools.count()


@dataclass(frozen=True)
class Prepared:
    """A model with all that artifacts of it are made from and held against."""

    name: str
    recipe: Recipe
    source: TensorSource
    base: Path
    imatrix: Path
    importance: Importance
    facts: Calibration
    sensitivity: Sensitivity
    logits: Path
    folder: Path
    devices: DeviceSettings
    _klds: dict[tuple[str, ...], KLDStatistics] = field(default_factory=dict)

    @property
    def elements(self) -> int:
        return sum(info.elements for info in self.source.tensors)

    def artifact(self, types: Mapping[str, str], importance: Importance) -> Path:
        """A file of these types."""
        place = self.folder / f"artifact-{next(_serial)}"
        place.mkdir()
        (path, *_) = quantize(
            self.source, Model.of("model", self.source), types, importance, place, place,
            self.devices.threads,
        )  # fmt: skip
        return path

    def kld(self, types: Mapping[str, str], importance: Importance | None = None) -> KLDStatistics:
        """Of an artifact of these types, on the held-out text; the file is gone afterwards."""
        path = self.artifact(types, self.importance if importance is None else importance)
        kept = path.with_name("kept.jsonl")
        found = measure_kld(self.logits, path, kept, self.devices).summary()
        path.unlink()
        return found

    def measured(self, importance: Importance, imatrix: Path | None, name: str) -> Sensitivity:
        """The recipe's measurement, with an importance matrix or without."""
        return _measured(
            self.source, self.base, self.recipe, importance, imatrix, self.facts.chunks,
            self.folder / name, self.devices,
        )  # fmt: skip


def prepare(folder: Path, devices: DeviceSettings) -> list[Prepared]:
    """The demo model, and SmolLM2-135M moved off the grid of its Q4_1 file."""
    smol = rough_copy(fetch(folder), folder)
    return [
        _prepared("demo", "demo", recipe_for("demo"), folder / "demo", devices),
        _prepared(
            "SmolLM2-135M, rough", str(smol), recipe_for("", "smollm2-135m"), folder / "smol",
            devices,
        ),
    ]  # fmt: skip


def _prepared(
    name: str, model: str, recipe: Recipe, folder: Path, devices: DeviceSettings
) -> Prepared:
    choice = choose_model(model)
    source = open_source(choice)
    work = folder / "work"
    work.mkdir(parents=True)
    base = folder / "base.gguf"
    if choice.kind == "gguf" and choice.path is not None:
        base = choice.path
    else:
        convert(source, "source", base, work, devices.threads)
    imatrix, logits = folder / "imatrix.gguf", folder / "base.logits"
    sources = resolve_sources(recipe.imatrix)
    facts = collect_imatrix(base, recipe.imatrix, sources, imatrix, work, devices)
    importance = read_imatrix(imatrix).importance()
    sensitivity = _measured(
        source, base, recipe, importance, imatrix, facts.chunks, folder / "with", devices
    )
    collect_base_logits(base, HELD_OUT, None, logits, work, devices)
    return Prepared(
        name, recipe, source, base, imatrix, importance, facts, sensitivity, logits, folder, devices
    )


def _measured(
    source: TensorSource,
    base: Path,
    recipe: Recipe,
    importance: Importance,
    imatrix: Path | None,
    used_chunks: int,
    folder: Path,
    devices: DeviceSettings,
) -> Sensitivity:
    folder.mkdir()
    text = CostInputs(base, imatrix, recipe.imatrix, resolve_sources(recipe.imatrix), used_chunks)
    out = folder / "sensitivity.json"
    return measure(source, importance, recipe.measure, text, out, folder, devices)
