"""TensorSource + imatrix + base.gguf → sensitivity.json: tensors' errors and their cost in KLD."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import seconds_text
from quantkit.formats.imatrix_file import Imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.quantize.encode import Importance
from quantkit.study.calibration.texts import CalibrationSource
from quantkit.study.costs import CostInputs, CostJob, MeasuredCosts, measure_costs
from quantkit.study.errors import measure_errors, seconds_of_errors
from quantkit.study.sensitivity import SampledRows, Sensitivity, units_of

NO_COSTS = MeasuredCosts((), 0, 0.0)


def chunks_of_text(
    imatrix: Imatrix, sources: Sequence[CalibrationSource], recipe: ImatrixRecipe
) -> int:
    """Chunks of the recipe's text that `imatrix` was collected on, judged by its dataset names."""
    names = {name for source in sources for name in source.dataset_names}
    if names.isdisjoint(imatrix.dataset_names):
        return 0
    return -(-imatrix.chunks * imatrix.chunk_tokens // recipe.chunk_tokens)


def measure(
    source: TensorSource,
    importance: Importance,
    recipe: MeasureRecipe,
    inputs: CostInputs | None,
    out: Path,
    work: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> Sensitivity:
    """Measure every quantizable tensor and write `out`; `work` keeps what a run has done.

    Without `inputs`, costs are not measured, and an error costs the same in every tensor. An
    estimate of the time is noted before each part.
    """
    seconds = seconds_of_errors(source.tensors, importance, recipe, devices.threads)
    progress.note(f"measuring quantization errors takes about {seconds_text(seconds)}")
    measured = measure_errors(source, importance, recipe, work, devices.threads, progress)
    errors = {entry.name: entry.errors for entry in measured}
    costs = NO_COSTS
    if inputs is not None:
        job = CostJob(inputs, tuple(units_of(errors, recipe.groups)), errors, recipe)
        costs = measure_costs(job, work, devices, devices.threads, progress)
    rows = {info.name: info.rows for info in source.tensors}
    found = Sensitivity(
        recipe=recipe,
        sampling={e.name: SampledRows(e.rows, rows[e.name], e.standard_error) for e in measured},
        median_relative_standard_error=statistics.median(
            [entry.standard_error for entry in measured] or [0.0]
        ),
        cost_tokens=costs.tokens,
        restored_kld=costs.restored_kld,
        errors={name: dict(kinds) for name, kinds in errors.items()},
        costs=costs.units,
    )
    found.write(out)
    return found
