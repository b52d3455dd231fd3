"""The stages of a build, in the order in which they run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from quantkit.build.context import (
    BASE_LOGITS,
    IMATRIX,
    SENSITIVITY,
    BuildContext,
    Done,
    Stage,
    Step,
    StudyContext,
)
from quantkit.config.recipe import ImatrixRecipe
from quantkit.core.documents import first_problem
from quantkit.core.errors import InputError
from quantkit.core.files import content_id, file_sha256
from quantkit.core.paths import HAYSTACK
from quantkit.core.progress import Progress
from quantkit.core.units import bytes_text
from quantkit.models.checkpoint_file import CHECKPOINT_FILE, CheckpointFile, SourceFile
from quantkit.models.download import download
from quantkit.models.end_tokens import stop_texts
from quantkit.plan import level_plans
from quantkit.plan.allocation_file import AllocationFile
from quantkit.plan.launch.files import write_launch_files
from quantkit.plan.launch.llama_cpp import server_command
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import LevelPlan
from quantkit.plan.placement import PLACEMENT_FILE, PlacementFile, check_fits
from quantkit.plan.type_choice import TypeChoice, check_importance
from quantkit.quantize.integrity import check_artifact
from quantkit.quantize.quantize import artifact_names, quantize
from quantkit.report.pictures import draw_coverage, draw_heatmap
from quantkit.report.report import COVERAGE_PICTURE, write_report
from quantkit.report.results import (
    BUILT,
    CALIBRATION,
    BuildFile,
    LevelResult,
    installed_versions,
    report_facts,
    verdict,
)
from quantkit.retrieval.results import Validation
from quantkit.retrieval.run.check import CheckSettings, check_retrieval
from quantkit.study.calibration.sources import local_sources, resolve_sources
from quantkit.study.calibration.texts import CalibrationSource
from quantkit.study.divergence import measure_kld
from quantkit.study.imatrix import Calibration, SourceRead, import_imatrix
from quantkit.study.imatrix_coverage import coverage_of
from quantkit.study.kld_statistics import kld_text, kld_with_error
from quantkit.study.sweep.study import SweepJob, measure_model


def checkpoint_stage(build: StudyContext) -> Stage:
    """Model → checkpoint.json: its files with sizes and hashes; a repository is brought here."""
    choice = build.choice
    out = build.job.study / CHECKPOINT_FILE
    settings: dict[str, Any] = {
        "model": choice.given if choice.kind == "repository" else choice.name,
        "mtp": build.job.recipe.convert.mtp,  # decides which tensors the model has
    }
    if choice.kind != "repository":
        settings["files"] = build.identities()

    def run(work: Path, progress: Progress) -> Done:
        commit, files = None, dict[str, SourceFile]()
        if choice.kind == "repository":
            remote = build.look_up(progress)
            found = download(remote, build.hub, build.checkpoint, progress)
            commit = found.commit
            for file in found.files:
                files[file.name] = SourceFile(size_bytes=file.size_bytes, sha256=file.sha256)
        else:
            paths = build.named_files()
            sizes = {name: path.stat().st_size for name, path in paths.items()}
            progress.start(sum(sizes.values()), "B")
            for name, path in paths.items():
                sha256 = file_sha256(path, progress.advance)
                files[name] = SourceFile(size_bytes=sizes[name], sha256=sha256)
        total = sum(file.size_bytes for file in files.values())
        CheckpointFile(model=settings["model"], commit=commit, files=files).write(out)
        detail = (
            f"{build.model.geometry.architecture}, {build.model.elements / 1e6:,.1f} M parameters, "
            f"{len(files)} files, {bytes_text(total)}"
        )
        return Done((out,), detail, {"parameters": build.model.elements, "size_bytes": total})

    return Stage("checkpoint", 1, (), settings, False, run)


def study_steps(build: StudyContext) -> list[Step]:
    """Checkpoint + texts → imatrix.gguf, sensitivity.json, base.logits; `run_study` runs them."""
    recipe, given = build.job.recipe, build.job.imatrix
    calibration = recipe.imatrix.model_dump(mode="json")
    calibration["sources"] = list(recipe.imatrix.sources)  # receipts sort a mixture
    if given is None:
        settings: dict[str, Any] = {**calibration, "files": _texts(recipe.imatrix)}
    else:
        settings = {"ready": [given.name, content_id(given)]}
    native = given is None
    steps = [Step("imatrix", 6, ("checkpoint",), settings, native)]
    settings = {"measure": recipe.measure.model_dump(mode="json")}
    if recipe.measure.measures_costs:
        settings |= {"calibration": calibration, "files": _texts(recipe.imatrix)}
    needs = ("checkpoint", "imatrix")
    steps.append(Step("measure", 5, needs, settings, True))
    if recipe.divergence.chunks:
        settings = {**recipe.divergence.model_dump(mode="json"), "text": content_id(HAYSTACK)}
        steps.append(Step("logits", 2, ("checkpoint",), settings, True))
    return steps


def run_study(
    build: StudyContext, work: Path, progress: Progress, stale: Sequence[str]
) -> dict[str, Done]:
    """One sweep over the model for the `stale` ones of `study_steps`."""
    job, folder = build.job, build.job.study
    recipe, given = job.recipe, job.imatrix
    found, done = None, dict[str, Done]()
    if "imatrix" in stale and given is not None:
        found = _imported(given, build, folder / IMATRIX, progress)
    collects, measures = found is None and "imatrix" in stale, "measure" in stale
    sources: Sequence[CalibrationSource] = ()
    if collects or (measures and recipe.measure.measures_costs):
        sources = resolve_sources(recipe.imatrix, progress)
    sweep = SweepJob(
        choice=build.choice,
        path=build.checkpoint,
        keep_prediction=recipe.convert.mtp == "keep",
        calibration=recipe.imatrix,
        sources=sources,
        ready=None if collects else folder / IMATRIX,
        imatrix=folder / IMATRIX if collects else None,
        measure=recipe.measure,
        sensitivity=folder / SENSITIVITY if measures else None,
        divergence=recipe.divergence,
        logits=folder / BASE_LOGITS if "logits" in stale else None,
    )
    measured = measure_model(sweep, work, build.devices, progress)
    found = measured.calibration or found
    if found is not None:
        unseen = f", unseen experts: {found.unseen_experts}" if found.unseen_experts else ""
        ready = f" of {found.ready}" if found.ready else ""
        detail = f"{found.weights} weights{ready}, {found.tokens:,} tokens{unseen}"
        done["imatrix"] = Done((folder / IMATRIX,), detail, found.model_dump(mode="json"))
    if measured.sensitivity is not None:
        errors, costs = measured.sensitivity.errors, measured.sensitivity.costs
        pairs = sum(len(kinds) for kinds in errors.values())
        detail = f"{len(errors)} tensors, {pairs} (tensor, type) pairs"
        if costs:
            detail += f", {len(costs)} costs"
        facts = {"tensors": len(errors), "pairs": pairs, "units": len(costs)}
        done["measure"] = Done((folder / SENSITIVITY,), detail, facts)
    if measured.logits is not None:
        out = folder / BASE_LOGITS
        size, positions = out.stat().st_size, measured.logits.positions
        detail = f"{positions:,} tokens of {measured.logits.text}, {bytes_text(size)}"
        done["logits"] = Done((out,), detail, {"tokens": positions, "size_bytes": size})
    return done


def _imported(path: Path, build: StudyContext, out: Path, progress: Progress) -> Calibration:
    ready = import_imatrix(path, build.source.tensors, out)
    for sentence in ready.notes:
        progress.note(sentence)
    found = ready.imatrix
    return Calibration(
        chunks=found.chunks,
        tokens=found.chunks * found.chunk_tokens,
        weights=len(found.entries),
        unseen_experts=coverage_of(found.entries).missed(1),
        sources=tuple(SourceRead(name) for name in found.dataset_names),
        ready=path.name,
    )


def _texts(recipe: ImatrixRecipe) -> list[list[str]]:
    """Name and hash of each calibration file that lies on this machine."""
    files = [path for source in local_sources(recipe) for path in source.files]
    return [[path.name, content_id(path)] for path in files]


def allocate_stage(build: BuildContext, plan: LevelPlan) -> Stage:
    """Sensitivity + target → allocation.json: a type for every tensor, held by the GPUs."""
    target = build.job.target

    def run(work: Path, progress: Progress) -> Done:
        if plan.stock is not None:
            check_importance(TypeChoice(plan.stock.types, plan.stock), build.importance)
        costs, (memory, _) = build.sensitivity.tensor_costs(), build.gpu_memory
        found = level_plans.fit_exactly(
            plan, build.artifact(plan), costs, memory, progress=level_plans.searching(progress)
        ).allocation
        out = build.folder(plan) / "allocation.json"
        content = AllocationFile.of(found, build.source.tensors, build.sensitivity)
        content.write(out)
        detail = bytes_text(found.total_bytes)
        if plan.stock is None:
            detail += f" of {bytes_text(found.budget_bytes)}"
        if content.predicted_kld is not None:
            predicted = kld_with_error(content.predicted_kld, content.predicted_kld_error)
            detail += f", predicted KLD {predicted}"
        if content.fallbacks:
            detail += f"; {content.fallback_text}"
        return Done((out,), detail, {"total_bytes": found.total_bytes})

    settings = {
        "level": plan.recipe.model_dump(mode="json", exclude={"baseline"}),
        "target": target.model_dump(mode="json", exclude={"description"}),
    }
    needs = ("checkpoint", "imatrix", "measure")
    return Stage(f"allocate:{plan.recipe.name}", 6, needs, settings, True, run)


def place_stage(build: BuildContext, plan: LevelPlan) -> Stage:
    """Allocation + target → placement.json: layers on GPUs, and the command that runs it so."""
    target = build.job.target

    def run(work: Path, progress: Progress) -> Done:
        artifact, types = build.artifact(plan), build.types(plan)
        placement = level_plans.place_exactly(artifact, types, build.gpu_memory[0])
        check_fits(placement, target.name)
        launch = Launch(
            placement,
            artifact_names(artifact, types)[0],
            artifact.name,
            artifact.geometry.architecture,
            placement.trained_context_tokens,
            target.devices,
            stops=stop_texts(artifact.metadata),
        )
        out = build.folder(plan) / PLACEMENT_FILE
        started = write_launch_files(launch, build.folder(plan))
        PlacementFile(command=server_command(launch), placement=placement).write(out)
        fullest = max(gpu.total_bytes / gpu.capacity_bytes for gpu in placement.gpus)
        detail = (
            f"layers {'+'.join(map(str, placement.tensor_split))} on {target.name}, "
            f"{placement.run.context_tokens:,} tokens, fullest GPU {fullest:.0%}"
        )
        return Done((out, *started), detail, {"tensor_split": placement.tensor_split})

    settings = {"target": target.model_dump(mode="json", exclude={"description"})}
    needs = ("checkpoint", "imatrix", f"allocate:{plan.recipe.name}")
    return Stage(f"place:{plan.recipe.name}", 4, needs, settings, True, run)


def quantize_stage(build: BuildContext, plan: LevelPlan) -> Stage:
    """Source + imatrix + allocation → the artifact."""

    def run(work: Path, progress: Progress) -> Done:
        files = quantize(
            build.source,
            build.artifact(plan),
            build.types(plan),
            build.importance,
            build.folder(plan),
            work,
            build.job.workers,
            progress,
            build.finished_artifacts(stage),
        )
        size = sum(path.stat().st_size for path in files)
        detail = f"{bytes_text(size)}, {8 * size / build.model.elements:.2f} bits a weight"
        return Done(tuple(files), detail, {"size_bytes": size})

    needs = ("checkpoint", "imatrix", f"allocate:{plan.recipe.name}")
    stage = Stage(f"quantize:{plan.recipe.name}", 3, needs, {}, True, run)
    return stage


def validate_stage(build: BuildContext, plan: LevelPlan) -> Stage:
    """Artifact → niah.jsonl, heatmap.png and validation.json: the release gate."""
    job = build.job
    recipe, note = build.retrieval
    kv_type = recipe.kv_type or job.target.kv_type

    def run(work: Path, progress: Progress) -> Done:
        if note:
            progress.note(note)
        folder, path, artifact = build.folder(plan), build.artifact_path(plan), build.artifact(plan)
        outputs = tuple(folder / n for n in ("validation.json", "niah.jsonl", "heatmap.png"))
        settings = CheckSettings(build.placed_devices(plan), kv_type, job.target.ubatch_tokens)
        integrity = check_artifact(
            path,
            build.source,
            artifact.metadata,
            build.types(plan),
            build.importance,
            progress=progress,
        )
        retrieval = check_retrieval(
            path, recipe, settings, outputs[1], work, job.haystack, progress
        )
        divergence = None
        if job.recipe.divergence.chunks:
            kept = work / "positions.jsonl"
            positions = measure_kld(job.out / BASE_LOGITS, path, kept, build.devices, progress)
            divergence = positions.summary()
        draw_heatmap(retrieval.answers, f"{artifact.name}, {retrieval.name}", outputs[2])
        hashes = build.pipeline.receipt(f"quantize:{plan.recipe.name}").output_hashes
        asked = {Path(name).name: sha256 for name, sha256 in hashes.items()}
        found = Validation(
            passed=retrieval.passed,
            niah=retrieval,
            kld=divergence,
            integrity=integrity,
            artifact=asked,
        )
        found.write(outputs[0])
        detail = f"{verdict(found, baseline=plan.recipe.baseline)}: " + ", ".join(
            f"{gate.hits}/{gate.trials} {gate.name} at {gate.context_tokens:,} tokens, "
            f"at least {gate.lower_bound:.1%}"
            for gate in retrieval.gated
        )
        if divergence is not None:
            detail += f", KLD {kld_text(divergence.mean)}"
        return Done(outputs, detail, {"passed": found.passed})

    settings = {
        "baseline": plan.recipe.baseline,
        "retrieval": recipe.model_dump(mode="json"),
        "kv_type": kv_type,
        "ubatch_tokens": job.target.ubatch_tokens,
        "haystack": None if job.haystack is None else content_id(job.haystack),
    }
    name = plan.recipe.name
    logits = ("logits",) if job.recipe.divergence.chunks else ()
    needs = (*logits, f"quantize:{name}", f"place:{name}")
    return Stage(f"validate:{name}", 6, needs, settings, True, run)


def report_stage(
    build: BuildContext, levels: Sequence[LevelPlan], results: Sequence[LevelResult]
) -> Stage:
    """Everything → report.html and README.md, with coverage.png and what they are made from."""
    job = build.job

    def run(work: Path, progress: Progress) -> Done:
        outputs = [job.out / CALIBRATION, job.out / BUILT]
        facts = build.pipeline.receipt("imatrix").facts
        found = {name: value for name, value in facts.items() if name != "detail"}
        try:
            calibration = Calibration.model_validate(found, strict=False)
        except ValidationError as error:
            raise InputError(
                f"the receipt of stage imatrix is damaged: {first_problem(error)}; delete "
                f"{job.out / 'receipts' / 'imatrix.json'} to have the stage run again"
            ) from None
        calibration.write(outputs[0])
        versions = installed_versions()
        BuildFile(recipe=job.recipe, target=job.target, versions=versions).write(outputs[1])
        if coverage_of(build.imatrix.entries).experts:
            outputs.append(job.out / COVERAGE_PICTURE)
            draw_coverage(build.imatrix, build.choice.name, outputs[-1])
        architecture, parameters = build.model.geometry.architecture, build.model.elements
        shown = report_facts(
            job.out, build.choice.name, architecture, parameters, job.target, job.recipe, results
        )
        pages = write_report(shown, job.out)
        return Done((*pages, *outputs), "report.html, README.md", {})

    steps = ("allocate", "place", "quantize", "validate")
    needs = tuple(f"{step}:{plan.recipe.name}" for plan in levels for step in steps)
    settings = {
        "recipe": job.recipe.model_dump(mode="json"),
        "target": job.target.model_dump(mode="json"),
    }
    return Stage("report", 12, ("imatrix", "measure", *needs), settings, True, run)
