"""The steps of a study as calls: from a model to imatrix.gguf and to sensitivity.json."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.errors import InputError
from quantkit.core.files import atomic, check_writable, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import seconds_text
from quantkit.core.work_folders import resumable, work_folder
from quantkit.formats.gguf_writer import check_stem
from quantkit.formats.imatrix_file import (
    LARGEST_IMPORTANCE,
    Imatrix,
    read_imatrix,
    write_imatrix,
)
from quantkit.formats.tensors import TensorInfo, TensorSource
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.candidates import is_quantizable
from quantkit.quantize.encode import Importance
from quantkit.study.calibration.sources import local_sources, resolve_sources
from quantkit.study.calibration.texts import CalibrationSource
from quantkit.study.costs import CostInputs, CostJob, MeasuredCosts, measure_costs
from quantkit.study.errors import measure_errors, seconds_of_errors
from quantkit.study.imatrix import Calibration, collect_imatrix
from quantkit.study.sensitivity import SampledRows, Sensitivity, units_of


def collect_file(
    model: Path, out: Path, recipe: ImatrixRecipe, workers: int, progress: Progress = SILENT
) -> Calibration:
    """Collect the importance matrix of the GGUF file `model` into the file `out`.

    A run that was interrupted resumes: unfinished work is kept beside `out`.

    Raises:
        InputError: a broken file or text, or `out` cannot be written.
        EnvironmentFault: native code failed.
    """
    source = GGUFSource(model)  # says what is wrong with the file before llama.cpp loads it
    texts = [path for found in local_sources(recipe) for path in found.files]
    check_stem(out.stem)
    check_writable(out, [*source.paths, *texts])
    devices = device_settings(workers)
    parts = {
        "model": identity(source.paths),
        "files": [[path.name, content_id(path)] for path in texts],
        "recipe": recipe.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    with resumable(work_folder(out), parts) as work:
        sources = resolve_sources(recipe, progress)
        return collect_imatrix(model, recipe, sources, out, work, devices, progress)


def measure_file(
    model: Path,
    imatrix: Path,
    out: Path,
    recipe: MeasureRecipe,
    calibration: ImatrixRecipe,
    workers: int,
    progress: Progress = SILENT,
    inputs: Sequence[Path] = (),
) -> Sensitivity:
    """Measure the errors and costs of the GGUF file `model` into the file `out`.

    A run that was interrupted resumes: unfinished work is kept beside `out`.

    Args:
        calibration: its text after what `imatrix` was collected on is what costs are measured on.
        inputs: further files that `out` must not replace.

    Raises:
        InputError: a broken file or text, an importance matrix of another model, or `out` cannot
            be written.
        EnvironmentFault: native code failed.
    """
    source = GGUFSource(model)
    ready = check_imatrix(imatrix, source.tensors)
    costs = recipe.cost_chunks > 0
    local = local_sources(calibration) if costs else ()
    texts = [path for found in local for path in found.files]
    check_writable(out, [*source.paths, *texts, imatrix, *inputs])
    for sentence in ready.notes:
        progress.note(sentence)
    devices = device_settings(workers)
    parts = {
        "model": identity(source.paths),
        "imatrix": content_id(imatrix),
        "files": [[path.name, content_id(path)] for path in texts],
        "recipe": recipe.model_dump(mode="json"),
        "calibration": calibration.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    importance = ready.imatrix.importance()
    with resumable(work_folder(out), parts) as work:
        text = None
        if costs:
            sources = resolve_sources(calibration, progress)
            used = chunks_of_text(ready.imatrix, sources, calibration)
            text = CostInputs(model, imatrix, calibration, sources, used)
        return measure(source, importance, recipe, text, out, work, devices, progress)


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
    costs = MeasuredCosts((), 0, 0.0)
    if inputs is not None:
        job = CostJob(inputs, tuple(units_of(errors, recipe.groups)), errors, recipe)
        costs = measure_costs(job, work, devices, progress)
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


class ImportedImatrix(NamedTuple):
    """An existing imatrix that fits the model, and notes about it for the user."""

    imatrix: Imatrix
    notes: tuple[str, ...]


def check_imatrix(path: Path, tensors: Sequence[TensorInfo]) -> ImportedImatrix:
    """Read `path` and compare it with the model's tensors.

    Raises:
        InputError: not an imatrix, or collected on another model.
    """
    by_name = {info.name: info for info in tensors}
    found = read_imatrix(path, {info.name: info.row_elements for info in tensors})
    known = [name for name in found.entries if name in by_name]
    if not known:
        first = min(found.entries, default=None)
        raise InputError(
            f"{path} has no statistics of this model's weights"
            + (f", only of others such as {first}" if first else "")
            + "; it was collected on another model"
        )
    for name in known:
        have, want = len(found.entries[name].sums), by_name[name].matrices
        if have != want:
            raise InputError(
                f"{path}: {name} has {have} matrices, the model's has {want}; the imatrix was "
                "collected on another model"
            )
        if not found.entries[name].is_usable:
            raise InputError(
                f"{path}: {name} has importance above {LARGEST_IMPORTANCE:g}, which ggml cannot "
                "use; collect the imatrix again"
            )
    notes = [f"{path.name}: {sentence}" for sentence in found.unknown]
    wanted = [i.name for i in tensors if i.name.startswith("blk.") and is_quantizable(i)]
    missing = [name for name in wanted if name not in found.entries]
    if missing:
        notes.append(
            f"{path.name} has no statistics of {len(missing)} of the {len(wanted)} weights of the "
            f"model's layers (for example {missing[0]}): these are quantized without an imatrix, "
            "and not to types that need one"
        )
    return ImportedImatrix(found, tuple(notes))


def import_imatrix(path: Path, tensors: Sequence[TensorInfo], out: Path) -> ImportedImatrix:
    """Check `path` and write its statistics to `out` as GGUF, sums and counts bit for bit.

    `out` is published, so it gets no other metadata, and of the texts only their names:
    llama-imatrix stores the path of its text as it was given.

    Raises:
        InputError: as `check_imatrix`.
    """
    found = check_imatrix(path, tensors)
    named = dataclasses.replace(found.imatrix, datasets=found.imatrix.dataset_names)
    with atomic(out) as partial:
        write_imatrix(partial, named)
    return found._replace(imatrix=named)
