"""`quantkit build`: the whole pipeline, its closing table and its gate."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from quantkit.core.console import Console
from quantkit.core.errors import InputError, QuantkitError
from quantkit.core.units import GIB, gb_text, gib_text
from quantkit.plan.machine import worker_count
from quantkit.report.results import LevelResult
from quantkit.study.kld_statistics import KLDStatistics, kld_text


def build(
    target: str,
    model: str,
    recipe: str | None,
    out: Path | None,
    levels: str | None,
    haystack: Path | None,
    calibration: Sequence[str] | None,
    imatrix: Path | None,
    publish_to: str | None,
    private: bool,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Run the whole pipeline, print the closing table, and publish what passed.

    Raises:
        GateError: a level that is meant for release failed; the others are published before.
    """
    from quantkit.build.run import Job, check_gate
    from quantkit.build.run import build as run
    from quantkit.config.recipe import recipe_for
    from quantkit.models.choose import choose_model
    from quantkit.plan.targets import choose_target

    gpu_set = choose_target(target)
    chosen = recipe_for(model, recipe)
    if levels is not None:
        chosen = chosen.with_levels(levels)
    if calibration and imatrix:
        raise InputError("--calibration is what an imatrix is collected on; leave it or --imatrix")
    if calibration:
        changed = chosen.imatrix.calibrated_on(calibration)
        chosen = chosen.model_copy(update={"imatrix": changed})
    name = choose_model(model).name
    folder = out or Path("build") / f"{name}-{gpu_set.name}"
    console = Console(quiet=quiet)
    if publish_to is not None:
        from quantkit.release.destination import check_access

        if all(level.baseline for level in chosen.levels):
            raise InputError(
                "--publish: all levels are baselines, which are not meant for release; 'quantkit "
                "publish --levels' publishes one all the same"
            )
        check_access(publish_to, name, private=private)  # hours of work later is too late
    elif private:
        raise InputError("--private says how to publish: give --publish too")
    job = Job(model, chosen, gpu_set, folder, worker_count(workers), haystack, imatrix)
    results = run(job, console)
    _closing_table(console, results)
    best = next((r for r in results if r.passed), None)
    console.line(f"Report: {folder / 'report.html'}")
    if best is not None:
        path = shlex.quote(str(folder / best.files[0]))
        command = best.command.replace(Path(best.files[0]).name, path, 1)
        console.line(f"Run it:  {command}")
    published = None
    if publish_to is not None and any(r.passed and not r.baseline for r in results):
        published = _published(folder, publish_to, private, console)
    if as_json:
        facts = {"folder": str(folder), "levels": [asdict(r) for r in results]}
        console.json(facts if published is None else facts | {"published": published})
    check_gate(results)


def _published(folder: Path, to: str, private: bool, console: Console) -> dict[str, object]:
    """Publish a finished build; what went wrong is told with how to go on."""
    from quantkit.cli.publish import publish
    from quantkit.release.publish import PublishJob

    try:
        return publish(PublishJob(folder, to, private=private), console.quiet, as_json=False)
    except QuantkitError:
        more = " --private" if private else ""
        command = f"quantkit publish {shlex.quote(str(folder))} --to {shlex.quote(to)}{more}"
        console.error(f"the build is finished, and not published; to go on: {command}")
        raise


def _closing_table(console: Console, results: Sequence[LevelResult]) -> None:
    columns = (
        "level", "size", "bits/w", "fullest GPU", "KLD\n[dim]99.9 %[/]",
        "same top\n[dim]perplexity[/]", "retrieval", "proven", "gate",
    )  # fmt: skip
    rows = []
    for r in results:
        gate = r.retrieval.gated[0]
        color = "green" if r.passed else "yellow" if r.baseline else "bold red"
        used, capacity = max(zip(r.gpu_bytes, r.gpu_capacity_bytes, strict=True))
        rows.append(
            (
                r.name,
                f"{gib_text(r.size_bytes)}\n[dim]{gb_text(r.size_bytes)}[/]",
                f"{r.bits_per_weight:.2f}",
                f"{used / GIB:.1f} GiB\n[dim]of {capacity / GIB:g} GiB[/]",
                *_divergence_cells(r.kld),
                f"{gate.hits}/{gate.trials}\n[dim]at {gate.context_tokens:,}[/]",
                f"≥ {gate.lower_bound:.1%}",
                f"[{color}]{r.verdict}[/]",
            )
        )
    console.table(columns, rows)


def _divergence_cells(kld: KLDStatistics | None) -> tuple[str, str]:
    """Mean over its 99.9th percentile, and the same top token over the perplexities' ratio."""
    if kld is None:
        return "–", "–"
    return (
        f"{kld_text(kld.mean)}\n[dim]{kld_text(kld.p999)}[/]",
        f"{kld.same_top:.1%}\n[dim]× {kld.perplexity_ratio:.3f}[/]",
    )
