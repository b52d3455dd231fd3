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

from collections.abc import Iterable, Sequence
from pathlib import Path

from quantkit.build.quantize import quantize
from quantkit.build.run import Job, StudyJob, home_of
from quantkit.build.run import build as run_build
from quantkit.build.run import study as run_study
from quantkit.build.validate import validate
from quantkit.config.recipe import Recipe, RetrievalRecipe, recipe_for
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
from quantkit.models.choose import choose_model
from quantkit.plan.plan import plan
from quantkit.plan.targets import choose_target
from quantkit.release.contents import read_build
from quantkit.report.comparison.run import compare
from quantkit.report.results import LevelResult
from quantkit.study.sensitivity import Study

__all__ = [
    "DoesNotFitError", "EnvironmentFault", "GateError", "InputError", "QuantkitError", "Recipe",
    "RetrievalRecipe", "Target", "build", "compare", "plan", "quantize", "read_results", "study",
    "validate",
]  # fmt: skip


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
    """Measure a model in one sweep: importance, errors of its tensors and what they cost, logits.

    Running it again resumes. A `build` with the same model and recipe goes on from it.

    Args:
        out: the model's folder: `study` in it gets imatrix.gguf, sensitivity.json, base.logits.
        calibration: texts instead of the recipe's: files, folders, domains, or
            hf://datasets/OWNER/NAME.
        imatrix: a ready importance matrix, GGUF or legacy .dat, instead of collecting one.
        workers: CPU threads; None: one for each core.

    Raises:
        InputError: a broken model or text, or a folder that cannot be written.
        EnvironmentFault: the network, the disk or native code failed.
    """
    chosen = recipe_for(model, recipe, calibration=calibration)
    ready = _ready(imatrix, calibration)
    job = StudyJob(choose_model(str(model)), chosen, home_of(out), worker_count(workers), ready)
    return run_study(job, Console(quiet=quiet))


def build(
    model: str | Path,
    target: str | Path | Target,
    out: str | Path,
    *,
    recipe: str | Path | Recipe | None = None,
    levels: str | Iterable[str] | None = None,
    calibration: str | Sequence[str] | None = None,
    imatrix: str | Path | None = None,
    study: str | Path | None = None,
    haystack: str | Path | None = None,
    for_release: bool = False,
    workers: int | None = None,
    quiet: bool = True,
) -> tuple[LevelResult, ...]:
    """The whole job: study, allocate, place, quantize and validate each level, and report.

    Running it again resumes. A level that failed its gate is not an error here: look at `passed`.

    Args:
        target, recipe, levels: as `plan` takes them.
        out: folder to build in.
        study: the model's folder, whose study and checkpoint builds for several targets share;
            None: `out`.
        calibration, imatrix, workers: as `study` takes them.
        haystack: text to hide the needles in; None: the one that ships.
        for_release: refuse at once a model whose metadata would reveal this machine, which
            `quantkit publish` refuses after the build.

    Returns:
        A result for each level; paths in it are relative to `out`.

    Raises:
        DoesNotFitError: no level fits the target.
        InputError: as `study`, or a gate that cannot be passed.
        EnvironmentFault: as `study`.
    """
    job = Job(
        choose_model(str(model)),
        recipe_for(model, recipe, levels, calibration),
        Path(out) if study is None else home_of(study),
        worker_count(workers),
        _ready(imatrix, calibration),
        out=Path(out),
        target=choose_target(target),
        haystack=None if haystack is None else Path(haystack),
        for_release=for_release,
    )
    return tuple(run_build(job, Console(quiet=quiet)))


def read_results(folder: str | Path) -> tuple[LevelResult, ...]:
    """The results of the finished build in `folder`, a level each; paths are relative to it.

    Raises:
        InputError: it holds no build, an unfinished one, or one of another version.
    """
    return tuple(level.result for level in read_build(Path(folder)).levels)


def _ready(imatrix: str | Path | None, calibration: object) -> Path | None:
    if imatrix is not None and calibration:
        raise InputError("--calibration is what an imatrix is collected on; leave it or --imatrix")
    return None if imatrix is None else Path(imatrix)
