"""A study's parts as commands: the importance matrix of a model, and its sensitivity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from quantkit.config.recipe import DivergenceRecipe, ImatrixRecipe, MeasureRecipe
from quantkit.core.files import check_writable, content_id, identity
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import resumable, work_folder
from quantkit.formats.gguf_writer import check_stem
from quantkit.formats.logits_file import LogitsHeader
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.selftest import device_settings
from quantkit.llamacpp.settings import DeviceSettings
from quantkit.models.choose import choose_local, choose_model, model_files, open_source
from quantkit.study.calibration.sources import local_sources, resolve_sources
from quantkit.study.imatrix import Calibration, check_imatrix
from quantkit.study.sensitivity import Sensitivity
from quantkit.study.sweep.study import SweepJob, measure_model


def collect_file(
    model: str | Path, out: Path, recipe: ImatrixRecipe, workers: int, progress: Progress = SILENT
) -> Calibration:
    """Collect the importance matrix of a model on this disk into the file `out`.

    A run that was interrupted resumes: unfinished work is kept beside `out`.

    Raises:
        InputError: a broken model or text, or `out` cannot be written.
        EnvironmentFault: native code failed.
    """
    choice, path = choose_local(str(model))
    open_source(choice, note=progress.note)  # says what is wrong with the files before any work
    files = model_files(choice, path)
    texts = [path for found in local_sources(recipe) for path in found.files]
    check_stem(out.stem)
    check_writable(out, [*files, *texts])
    devices = device_settings(workers)
    parts = {
        "model": identity(files),
        "files": [[path.name, content_id(path)] for path in texts],
        "recipe": recipe.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    with resumable(work_folder(out), parts) as work:
        sources = resolve_sources(recipe, progress)
        job = SweepJob(choice, path, calibration=recipe, sources=sources, imatrix=out)
        found = measure_model(job, work, devices, progress).calibration
    assert found is not None
    return found


def measure_file(
    model: str | Path,
    imatrix: Path,
    out: Path,
    recipe: MeasureRecipe,
    calibration: ImatrixRecipe,
    workers: int,
    progress: Progress = SILENT,
    inputs: Sequence[Path] = (),
) -> Sensitivity:
    """Measure the errors and costs of a model on this disk into the file `out`.

    A run that was interrupted resumes: unfinished work is kept beside `out`.

    Args:
        calibration: its text beside what `imatrix` was collected on is what costs are measured on.
        inputs: further files that `out` must not replace.

    Raises:
        InputError: a broken file or text, an importance matrix of another model, or `out` cannot
            be written.
        EnvironmentFault: native code failed.
    """
    choice, path = choose_local(str(model))
    source, files = open_source(choice, note=progress.note), model_files(choice, path)
    ready = check_imatrix(imatrix, source.tensors)
    costs = recipe.measures_costs
    local = local_sources(calibration) if costs else ()
    texts = [path for found in local for path in found.files]
    check_writable(out, [*files, *texts, imatrix, *inputs])
    for sentence in ready.notes:
        progress.note(sentence)
    devices = device_settings(workers)
    parts = {
        "model": identity(files),
        "imatrix": content_id(imatrix),
        "files": [[path.name, content_id(path)] for path in texts],
        "recipe": recipe.model_dump(mode="json"),
        "calibration": calibration.model_dump(mode="json"),
        "llama-cpp-python": library_version(),
    }
    with resumable(work_folder(out), parts) as work:
        sources = resolve_sources(calibration, progress) if costs else ()
        job = SweepJob(
            choice,
            path,
            calibration=calibration,
            sources=sources,
            ready=imatrix,
            measure=recipe,
            sensitivity=out,
        )
        found = measure_model(job, work, devices, progress).sensitivity
    assert found is not None
    return found


def collect_base_logits(
    base: Path,
    recipe: DivergenceRecipe,
    text: Path | None,
    out: Path,
    work: Path,
    devices: DeviceSettings,
    progress: Progress = SILENT,
) -> LogitsHeader:
    """Run a GGUF file on `text` (None: the haystack) and write its logits to `out`.

    `work` keeps what an interrupted run has done.

    Raises:
        InputError: llama.cpp cannot load the file, or the text is shorter than one chunk.
        EnvironmentFault: native code crashed, or the logits are not finite.
    """
    job = SweepJob(choose_model(str(base)), base, divergence=recipe, text=text, logits=out)
    found = measure_model(job, work, devices, progress).logits
    assert found is not None
    return found
