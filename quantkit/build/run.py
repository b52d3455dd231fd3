"""`quantkit build`: from a model to checked artifacts and a report."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from quantkit.build import stages
from quantkit.build.context import (
    BASE_LOGITS,
    IMATRIX,
    SENSITIVITY,
    STUDY,
    BuildContext,
    Job,
    StudyContext,
    StudyJob,
)
from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError
from quantkit.core.paths import haystack_text
from quantkit.core.receipts import adopt_receipt, forget_receipt, read_receipt
from quantkit.core.work_folders import build_folder
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.imatrix_file import read_imatrix
from quantkit.formats.tensors import TensorSource
from quantkit.llamacpp.memory_plan import asking
from quantkit.models.choose import imatrix_name, open_shapes
from quantkit.models.families.base import without_prediction
from quantkit.models.families.registry import family_for
from quantkit.models.geometry import geometry_of
from quantkit.models.local_copy import check_build_space, space_needed, survey
from quantkit.models.model import Model
from quantkit.plan import level_plans
from quantkit.plan.gpu_memory import gpu_memory
from quantkit.plan.llama_memory import gpu_memories
from quantkit.quantize.quantize import artifact_metadata
from quantkit.release.privacy import find_in_metadata, this_machine, words_of
from quantkit.report.results import LevelResult, read_level
from quantkit.retrieval import gate
from quantkit.retrieval.run.check import CheckSettings, rehearse_check
from quantkit.study.calibration.sources import local_sources
from quantkit.study.imatrix import check_imatrix
from quantkit.study.sensitivity import Sensitivity, Study

__all__ = ["Job", "StudyJob", "build", "check_gate", "home_of", "read_study", "study"]


def study(job: StudyJob, console: Console) -> Study:
    """Collect a model's importance matrix and measure its tensors; running again resumes.

    Raises:
        QuantkitError: bad input, or a fault of this machine.
    """
    context = StudyContext(job, console)
    _preflight_texts(context)
    with build_folder(job.study):
        console.heading(f"quantkit study {job.model.given} → {job.study}")
        _bring(context)
        _measure(context)
    return read_study(job.home)


def home_of(folder: str | Path) -> Path:
    """A model's folder, of which a person may name the `study` in it too."""
    path = Path(folder)
    return path.parent if path.name == STUDY else path


def read_study(home: Path) -> Study:
    """The finished study in a model's folder.

    Raises:
        InputError: there is none, or it is unfinished.
    """
    folder = home / STUDY
    if not all((folder / name).is_file() for name in (IMATRIX, SENSITIVITY)):
        raise InputError(
            f"{home} has no finished study ({IMATRIX} and {SENSITIVITY}); 'quantkit study MODEL "
            "--out FOLDER' makes one"
        )
    logits = folder / BASE_LOGITS
    return Study(
        home,
        folder / IMATRIX,
        Sensitivity.read(folder / SENSITIVITY),
        logits if logits.is_file() else None,
    )


def _bring(context: StudyContext) -> None:
    """The model's files, downloaded where it is a repository."""
    if not context.is_whole():
        forget_receipt(context.job.study, "checkpoint")
    context.studying.run(stages.checkpoint_stage(context))


def _measure(context: StudyContext) -> None:
    """All that is measured of the model, in one sweep."""
    run = functools.partial(stages.run_study, context)
    context.studying.run_together(STUDY, stages.study_steps(context), run)


def build(job: Job, console: Console) -> list[LevelResult]:
    """Run the build of `job` and return its levels' results; the gate is the caller's to check.

    Raises:
        QuantkitError: bad input, a target that nothing fits, or a fault of this machine.
    """
    context = BuildContext(job, console)
    pipeline = context.pipeline
    with asking():
        _preflight(context)
    with build_folder(job.out):
        console.heading(f"quantkit build {job.model.given} for {job.target.name} → {job.out}")
        with build_folder(job.study, "choose another with --study"):
            _bring(context)
            levels, notes = context.levels
            for sentence in notes:
                console.note(sentence)
            _preflight_check(context)
            _measure(context)
            with pipeline.console.stage(STUDY, job.out):
                for stage in ("checkpoint", *(s.name for s in stages.study_steps(context))):
                    adopt_receipt(job.study, job.out, stage)
        for plan in levels:
            pipeline.run(stages.allocate_stage(context, plan))
            pipeline.run(stages.place_stage(context, plan))
            pipeline.run(stages.quantize_stage(context, plan))
            pipeline.run(stages.validate_stage(context, plan))
        results = [
            read_level(
                job.out,
                plan.recipe.name,
                pipeline.receipt(f"quantize:{plan.recipe.name}"),
                context.model.elements,
                baseline=plan.recipe.baseline,
            )
            for plan in levels
        ]
        pipeline.run(stages.report_stage(context, levels, results))
    return results


def _preflight(context: BuildContext) -> None:
    """Check the input before the folder is made and before any work."""
    if context.choice.kind != "repository":
        _ = context.levels
        _preflight_privacy(context, context.source)
    _preflight_texts(context)
    if context.job.haystack is not None:
        haystack_text(context.job.haystack)
    gate.check_gate_is_possible(context.job.recipe.retrieval)
    if not context.is_whole():
        _preflight_repository(context)


def _preflight_texts(context: StudyContext) -> None:
    """See that the calibration texts and a ready importance matrix can be read."""
    ready = context.job.imatrix
    if ready is None or context.job.recipe.measure.measures_costs:
        local_sources(context.job.recipe.imatrix)
    if ready is not None and context.choice.kind == "repository":
        read_imatrix(ready)  # compared with the model once its tensors are known
    elif ready is not None:
        check_imatrix(ready, context.source.tensors)


def _preflight_privacy(context: BuildContext, source: TensorSource) -> None:
    """See whether the model's own metadata would reveal this machine, as every artifact's then.

    Raises:
        InputError: it would, and the build is for a release.
    """
    ready = context.job.imatrix
    imatrix = None if ready is None else read_imatrix(ready)
    metadata = artifact_metadata(source.metadata, imatrix, imatrix_name(context.choice.name))
    found = find_in_metadata(metadata, this_machine(context.job.out))
    if not found:
        return
    sentence = (
        f"the model would reveal this machine or its user: {words_of(found)}; change that in its "
        "files before it is published: 'quantkit publish' will refuse the build"
    )
    if context.job.for_release:
        raise InputError(sentence)
    context.pipeline.console.note(sentence)


def _preflight_check(context: BuildContext) -> None:
    """Rehearse the check on the base, which has the artifacts' shape, before the long stages.

    Raises:
        InputError: a context is too short for what is to be hidden in it, or the haystack is.
        EnvironmentFault: the check would find no memory, or ask for what llama.cpp cannot do.
    """
    if read_receipt(context.job.out, "imatrix") is not None:  # an earlier run checked it
        return
    job, (recipe, _) = context.job, context.retrieval
    kv_type = recipe.kv_type or job.target.kv_type
    settings = CheckSettings(context.devices, kv_type, job.target.ubatch_tokens)
    layout = single_file_layout("rehearsal", context.source.metadata, context.source.tensors)
    with context.pipeline.console.stage("rehearse") as progress, TemporaryDirectory() as folder:
        shape = write_shape(Path(folder), layout)
        rehearse_check(shape, recipe, settings, job.haystack, progress)


def _preflight_repository(context: BuildContext) -> None:
    """Look the repository up, and see that all has room, before the first byte of weights.

    On the disk, and on the GPUs: of the weights only headers are read, and the levels planned.

    Raises:
        DoesNotFitError: no level fits the target.
    """
    job = context.job
    with context.pipeline.console.stage("look up") as progress:
        remote = context.look_up(progress)
    keep = job.recipe.convert.mtp == "keep"
    config = remote.config if keep else without_prediction(remote.config)
    geometry = geometry_of(family_for(config).metadata(config))
    limit = level_plans.target_budget(gpu_memory(geometry, job.target))
    found = survey(remote, context.checkpoint)
    vocabulary = geometry.vocabulary
    needed = space_needed(found.fetch_bytes, remote.elements, vocabulary, job.recipe, limit)
    # What an earlier build left counts for nothing: it goes only when its successor is whole.
    check_build_space(needed, found.free_bytes, job.home, job.out)
    with context.pipeline.console.stage("headers") as progress:
        # the commit that will be downloaded, and no other
        listing = remote.listing
        pinned = replace(context.choice, repository=listing.repository, revision=listing.commit)
        source = open_shapes(pinned, progress, lambda: context.hub, keep_prediction=keep)
    _preflight_privacy(context, source)
    model = Model.of(context.choice.name, source)
    (memory,), _ = gpu_memories(model, [job.target])
    level_plans.plan_levels(job.recipe, model, memory)


def check_gate(results: Sequence[LevelResult]) -> None:
    """Raise when a level that is meant for release failed.

    Raises:
        GateError: names the levels.
    """
    failed = [r for r in results if not r.passed and not r.baseline]
    if failed:
        words = "; ".join(
            f"{r.name} found {s.hits} of {s.trials} {s.name} at {s.context_tokens} tokens (lower "
            f"bound {s.lower_bound:.1%})"
            for r in failed
            for s in r.retrieval.gated
        )
        raise GateError(
            f"the retrieval gate failed: {words}; do not release it: give it more bits, or mark it "
            "as a baseline in the recipe"
        )
