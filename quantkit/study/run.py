"""The steps of a study as calls: from a GGUF file to imatrix.gguf and to sensitivity.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.config.recipe import ImatrixRecipe, MeasureRecipe
from quantkit.core.files import check_writable, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import resumable, work_folder
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.models.gguf_source import GGUFSource
from quantkit.study.calibration.sources import local_sources, resolve_sources
from quantkit.study.costs import CostInputs
from quantkit.study.imatrix import Calibration, collect_imatrix
from quantkit.study.imatrix_import import check_imatrix
from quantkit.study.measure import chunks_of_text, measure
from quantkit.study.sensitivity import Sensitivity


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
    texts = _texts(recipe)
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
    texts = _texts(calibration) if costs else []
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


def _texts(recipe: ImatrixRecipe) -> list[Path]:
    """The calibration files that lie on this machine."""
    return [path for source in local_sources(recipe) for path in source.files]
