"""`quantkit build`: from a model to checked artifacts and a report."""

from __future__ import annotations

from quantkit import build_stages as stages
from quantkit import planning
from quantkit.build_context import BuildContext, Job
from quantkit.console import Console
from quantkit.errors import GateError
from quantkit.pipeline import Pipeline
from quantkit.receipts import build_folder
from quantkit.results import LevelResult, read_level
from quantkit.retrieval.haystack import haystack_text
from quantkit.stages.imatrix import calibration_paths

__all__ = ["Job", "build", "check_gate"]


def build(job: Job, console: Console) -> list[LevelResult]:
    """Run the build of `job` and return its levels' results; the gate is the caller's to check.

    Raises:
        QuantkitError: bad input, a target that nothing fits, or a fault of this machine.
    """
    pipeline = Pipeline(job.out, console)
    context = BuildContext(job, pipeline)
    _preflight(context)
    with build_folder(job.out):
        console.heading(f"quantkit build {job.model} for {job.target.name} → {job.out}")
        if not context.is_whole():
            pipeline.forget("checkpoint")
        pipeline.run(stages.checkpoint_stage(context))
        levels, notes = context.levels()
        for sentence in notes:
            console.note(sentence)
        if context.choice.kind != "gguf":
            pipeline.run(stages.convert_stage(context))
        pipeline.run(stages.imatrix_stage(context))
        pipeline.run(stages.measure_stage(context))
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
                context.parameters,
                baseline=plan.recipe.baseline,
            )
            for plan in levels
        ]
        pipeline.run(stages.report_stage(context, levels, results))
    return results


def _preflight(context: BuildContext) -> None:
    """Bad input is told before the folder is made and before any work."""
    if context.choice.kind != "repository":
        context.levels()
    calibration_paths(context.job.recipe.imatrix)
    if context.job.haystack is not None:
        haystack_text(context.job.haystack)
    planning.check_gate_is_possible(context.job.recipe.retrieval)


def check_gate(results: list[LevelResult]) -> None:
    """Raise when a level that is meant for release failed.

    Raises:
        GateError: names the levels.
    """
    failed = [r for r in results if not r.passed and not r.baseline]
    if failed:
        words = "; ".join(
            f"{r.name} found {r.lengths[-1][1]} of {r.lengths[-1][2]} needles at "
            f"{r.lengths[-1][0]} tokens (lower bound {r.lengths[-1][3]:.1%})"
            for r in failed
        )
        raise GateError(
            f"the retrieval gate failed: {words}; do not release it: give it more bits, or mark it "
            "as a baseline in the recipe"
        )
