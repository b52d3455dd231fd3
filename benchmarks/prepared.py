"""A model made ready once for several benchmarks: imatrix, sensitivity, the base's logits."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fetch_smollm2 import fetch, rough_copy

from quantkit.config.recipe import DivergenceRecipe, Recipe, recipe_for
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import ModelChoice, choose_local, open_source
from quantkit.models.model import Model
from quantkit.quantize.encode import Importance
from quantkit.quantize.quantize import quantize
from quantkit.study.calibration.sources import resolve_sources
from quantkit.study.divergence import measure_kld
from quantkit.study.imatrix import Calibration
from quantkit.study.kld_statistics import KLDStatistics
from quantkit.study.sensitivity import Sensitivity
from quantkit.study.sweep.study import SweepJob, measure_model

HELD_OUT = DivergenceRecipe(chunk_tokens=512, chunks=12)
_serial = itertools.count()


@dataclass(frozen=True)
class Prepared:
    """A model with all that artifacts of it are made from and held against."""

    name: str
    recipe: Recipe
    choice: ModelChoice
    path: Path
    source: TensorSource
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

    def measured(self, imatrix: Path | None, name: str) -> Sensitivity:
        """The recipe's measurement, with an importance matrix or without."""
        work = self.folder / name
        work.mkdir()
        job = SweepJob(
            self.choice, self.path, calibration=self.recipe.imatrix,
            sources=resolve_sources(self.recipe.imatrix), ready=imatrix,
            measure=self.recipe.measure, sensitivity=work / "sensitivity.json",
        )  # fmt: skip
        found = measure_model(job, work, self.devices).sensitivity
        assert found is not None
        return found


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
    choice, path = choose_local(model)
    source = open_source(choice)
    work = folder / "work"
    work.mkdir(parents=True)
    imatrix, logits = folder / "imatrix.gguf", folder / "base.logits"
    job = SweepJob(
        choice, path, calibration=recipe.imatrix, sources=resolve_sources(recipe.imatrix),
        imatrix=imatrix, measure=recipe.measure, sensitivity=folder / "sensitivity.json",
        divergence=HELD_OUT, logits=logits,
    )  # fmt: skip
    found = measure_model(job, work, devices)
    assert found.calibration is not None
    assert found.sensitivity is not None
    return Prepared(
        name, recipe, choice, path, source, imatrix, read_imatrix(imatrix).importance(),
        found.calibration, found.sensitivity, logits, folder, devices,
    )  # fmt: skip
