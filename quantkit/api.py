"""The Python API: each call does the work of the command of its name and returns typed values.

    import quantkit

    plan = quantkit.plan("demo", "1x3090")
    study = quantkit.study("demo", "build/demo")
    made = quantkit.quantize("demo", "Q4_K_M", "demo-Q4_K_M.gguf", imatrix=study.imatrix)
    found = quantkit.validate(made.files[0], source="demo", context_tokens=(2048,))
    print(found.passed, made.bits_per_weight)

Models are named as on the command line: a Hub repository (OWNER/NAME[@REVISION]), a folder, a GGUF
file, or "demo". Nothing is printed unless `quiet` is False. Every call raises a `QuantkitError`
for what a person can act on: `InputError` for a wrong argument or a broken file,
`DoesNotFitError` where nothing fits the target, `GateError` where a file is not what it should be,
and `EnvironmentFault` where this machine fails. `import quantkit` loads none of this; the first
use of a name does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quantkit.config.recipe import DivergenceRecipe, Recipe, RetrievalRecipe, recipe_for
from quantkit.config.target import Target
from quantkit.core.console import Console
from quantkit.core.errors import (
    DoesNotFitError,
    EnvironmentFault,
    GateError,
    InputError,
    QuantkitError,
)
from quantkit.core.threads import worker_count
from quantkit.core.yaml import validated

if TYPE_CHECKING:
    from quantkit.build.quantize import Artifact
    from quantkit.build.run import Study
    from quantkit.build.validate import Validation
    from quantkit.plan.run import ModelPlan
    from quantkit.report.comparison.run import ComparisonFiles
    from quantkit.report.results import LevelResult

__all__ = [
    "DoesNotFitError",
    "EnvironmentFault",
    "GateError",
    "InputError",
    "QuantkitError",
    "Recipe",
    "RetrievalRecipe",
    "Target",
    "build",
    "compare",
    "plan",
    "quantize",
    "read_results",
    "study",
    "validate",
]


def plan(
    model: str | Path,
    target: str | Path | Target,
    *,
    recipe: str | Path | Recipe | None = None,
    levels: str | Iterable[str] | None = None,
    types: str | Path | Mapping[str, str] | None = None,
    study: Study | None = None,
    quiet: bool = True,
    **changes: float | str | None,
) -> ModelPlan:
    """What fits a target, GPU by GPU; no weights are read.

    Args:
        target: the name of one that ships, a YAML file, "auto" for this machine's GPUs, or a
            `Target`.
        recipe: None: the one written for the model, else the default.
        levels: instead of the recipe's, as in "Q6,Q4_K_M,4.5,71GiB". A GGUF file without `recipe`
            and `levels` is planned with the types that it has.
        types: plan one artifact: an allocation.json, a preset, or tensor → type.
        study: chooses types by measured costs; without it costs are nominal.
        changes: fields of the target with other values, as in context_tokens=32768, kv_type="f16".

    Returns:
        A plan whose `sheet.entries` are the artifacts, each with its `types`, `total_bytes` and
        `placement`: bytes on each GPU.

    Raises:
        DoesNotFitError: nothing fits; says what would.
        InputError: no such model, target, recipe or level, or llama.cpp refuses the model.
    """
    from quantkit.llamacpp.memory_plan import asking
    from quantkit.models.choose import choose_model
    from quantkit.plan.run import plan_model

    if types is not None and levels is not None:
        raise InputError("types plans one artifact and levels several: give one of them")
    context = changes.get("context_tokens")
    with asking(), Console(quiet=quiet).stage("headers") as progress:
        return plan_model(
            choose_model(str(model)),
            _recipe(model, recipe, levels),
            _target(target).changed(**changes),
            progress,
            types=types if types is None or isinstance(types, Mapping) else str(types),
            as_it_is=recipe is None and levels is None,
            context_tokens=None if context is None else int(context),
            costs=None if study is None else study.sensitivity.costs(),
        )


def study(
    model: str | Path,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    calibration: str | Sequence[str] | None = None,
    imatrix: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> Study:
    """Collect a model's importance matrix, and measure the errors of its tensors and their cost.

    Running it again resumes. A `build` with the same model, recipe and folder goes on from it.

    Args:
        out: folder to write to: base.gguf, imatrix.gguf, sensitivity.json.
        calibration: texts instead of the recipe's: files, folders, domains, or
            hf://datasets/OWNER/NAME.
        imatrix: a ready importance matrix, GGUF or legacy .dat, instead of collecting one.
        workers: CPU threads; None: one for each core.

    Returns:
        The files, and `sensitivity`: errors are relative, Σ w·(x − q(x))² / Σ w·x²; costs are
        mean KL divergences in nats.

    Raises:
        InputError: a broken model or text, or a folder that cannot be written.
        EnvironmentFault: the network, the disk or native code failed.
    """
    from quantkit.build.run import StudyJob
    from quantkit.build.run import study as run

    chosen = _recipe(model, recipe, calibration=calibration)
    ready = None if imatrix is None else Path(imatrix)
    job = StudyJob(str(model), chosen, Path(out), worker_count(workers), ready)
    return run(job, Console(quiet=quiet))


def build(
    model: str | Path,
    target: str | Path | Target,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    levels: str | Iterable[str] | None = None,
    calibration: str | Sequence[str] | None = None,
    imatrix: str | Path | None = None,
    haystack: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
) -> tuple[LevelResult, ...]:
    """The whole job: study, allocate, place, quantize and validate each level, and report.

    Running it again resumes. A level that failed its gate is not an error here: look at `passed`.

    Args:
        target, recipe, levels: as `plan` takes them.
        out: folder to build in.
        calibration, imatrix, workers: as `study` takes them.
        haystack: text to hide the needles in; None: the one that ships.

    Returns:
        A result for each level; paths in it are relative to `out`.

    Raises:
        DoesNotFitError: no level fits the target.
        InputError: as `study`, or a gate that cannot be passed.
        EnvironmentFault: as `study`.
    """
    from quantkit.build.run import Job
    from quantkit.build.run import build as run

    job = Job(
        str(model),
        _recipe(model, recipe, levels, calibration),
        Path(out),
        worker_count(workers),
        None if imatrix is None else Path(imatrix),
        target=_target(target),
        haystack=None if haystack is None else Path(haystack),
    )
    return tuple(run(job, Console(quiet=quiet)))


def quantize(
    model: str | Path,
    types: str | Path | Mapping[str, str],
    out: str | Path,
    *,
    imatrix: str | Path | None = None,
    keep_prediction: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> Artifact:
    """Write a model on this disk as one artifact; running it again after an interruption resumes.

    Args:
        types: an allocation.json, a preset such as "Q4_K_M", or tensor → type, as a plan has them.
        out: the GGUF file; a large one becomes several shards beside it.
        imatrix: importance matrix, GGUF or legacy .dat.
        keep_prediction: keep the multi-token prediction layers.

    Raises:
        InputError: types that are not of this model or need an importance matrix, a broken file,
            or `out` cannot be written.
        EnvironmentFault: the disk is full, or native code failed.
    """
    from quantkit.build.quantize import quantize_file

    with Console(quiet=quiet).stage("quantize") as progress:
        return quantize_file(
            str(model),
            types if isinstance(types, Mapping) else str(types),
            Path(out),
            None if imatrix is None else Path(imatrix),
            worker_count(workers),
            progress,
            keep_prediction=keep_prediction,
        )


def validate(
    model: str | Path,
    out: str | Path | None = None,
    *,
    source: str | Path | None = None,
    haystack: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
    **settings: object,
) -> Validation:
    """The retrieval check of a GGUF file, or of a running llama-server.

    A missed gate is not an error here: look at `passed`, or call `check_gate()`.

    Args:
        model: a GGUF file, or the address of a server, as in http://127.0.0.1:8080.
        out: folder for answers, heatmap and validation.json; None: NAME-niah in the current one.
        source: of a file, the model that it was made from: its weights are compared first.
        haystack: text to hide the needles in; None: the one that ships.
        settings: fields of `RetrievalRecipe`, as in context_tokens=(8192,), needles=64.

    Raises:
        InputError: a broken file, no server, settings that cannot be met, or too little text.
        GateError: the weights are not those of `source`, or the file is not made for the context.
        EnvironmentFault: no memory for the context, or native code failed.
    """
    from quantkit.build.validate import check_inputs, validate_file, validate_server

    defaults = {"context_tokens": (8192, 32768), "kv_type": "q8_0"}
    recipe = _retrieval(defaults | settings)
    folder = None if out is None else Path(out)
    text = None if haystack is None else Path(haystack)
    served = str(model).startswith(("http://", "https://"))
    if served and source is not None:
        raise InputError("source needs the file itself; it cannot be compared with a server")
    endpoint = str(model) if served else None
    check_inputs(None if served else Path(model), endpoint, recipe)
    with Console(quiet=quiet).stage("validate") as progress:
        if endpoint is not None:
            return validate_server(endpoint, recipe, folder, progress, haystack=text)
        return validate_file(
            Path(model),
            recipe,
            folder,
            worker_count(workers),
            progress,
            source=None if source is None else str(source),
            haystack=text,
        )


def compare(
    artifacts: Iterable[str | Path],
    out: str | Path | None = None,
    *,
    base: str | Path | None = None,
    text: str | Path | None = None,
    chunks: int = 16,
    chunk_tokens: int = 512,
    retrieval: bool = True,
    haystack: str | Path | None = None,
    workers: int | None = None,
    quiet: bool = True,
    **settings: object,
) -> ComparisonFiles:
    """Artifacts of one base side by side: size, KL divergence, retrieval, speed, and which differ.

    Args:
        out: folder for page, tables and picture; None: BASE-compare in the current one.
        base: file that the KL divergence is measured from; None: the largest artifact.
        text: that it is measured on, `chunks` chunks of `chunk_tokens`; None: the one that ships.
        retrieval: whether to make the retrieval check.
        settings: fields of its `RetrievalRecipe`. By default 32 needles, seeds 1, 2 and 3, and
            2048 and 8192 tokens, as far as all artifacts were trained for them.

    Raises:
        InputError: fewer than two artifacts, or files with other tokenizers or chat templates.
        EnvironmentFault: no memory, or native code failed.
    """
    from quantkit.report.comparison.run import ComparisonJob
    from quantkit.report.comparison.run import compare as run

    defaults = {
        "needles": 32, "seeds": (1, 2, 3), "kv_type": "q8_0", "minimum_lower_bound": None,
        "near_misses": 0,
    }  # fmt: skip
    job = ComparisonJob(
        tuple(Path(artifact) for artifact in artifacts),
        None if base is None else Path(base),
        validated(
            DivergenceRecipe, {"chunks": chunks, "chunk_tokens": chunk_tokens}, Path("settings")
        ),
        None if text is None else Path(text),
        _retrieval(defaults | settings) if retrieval else None,
        None if haystack is None else Path(haystack),
        None if out is None else Path(out),
        worker_count(workers),
    )
    return run(job, Console(quiet=quiet))


def read_results(folder: str | Path) -> tuple[LevelResult, ...]:
    """The results of the finished build in `folder`, a level each; paths are relative to it.

    Raises:
        InputError: it holds no build, an unfinished one, or one of another version.
    """
    from quantkit.release.contents import read_build

    return tuple(level.result for level in read_build(Path(folder)).levels)


def _target(target: str | Path | Target) -> Target:
    from quantkit.plan.targets import choose_target

    return target if isinstance(target, Target) else choose_target(str(target))


def _recipe(
    model: str | Path,
    recipe: str | Path | Recipe | None,
    levels: str | Iterable[str] | None = None,
    calibration: str | Sequence[str] | None = None,
) -> Recipe:
    words = levels if levels is None or isinstance(levels, str) else ",".join(levels)
    texts = [calibration] if isinstance(calibration, str) else calibration
    if isinstance(recipe, Recipe):
        return recipe.adapted(words, texts)
    return recipe_for(str(model), None if recipe is None else str(recipe), words, texts)


def _retrieval(settings: Mapping[str, object]) -> RetrievalRecipe:
    return validated(RetrievalRecipe, dict(settings), Path("settings"))
