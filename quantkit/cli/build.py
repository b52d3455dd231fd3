"""`quantkit build`: the whole pipeline, its closing table and its gate."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Option

from quantkit.cli import options
from quantkit.core.console import Console, marked
from quantkit.core.errors import InputError, QuantkitError
from quantkit.core.units import GIB, gib_text

if TYPE_CHECKING:
    from quantkit.config.recipe import Recipe
    from quantkit.core.console import Cell
    from quantkit.report.results import LevelResult
    from quantkit.study.kld_statistics import KLDStatistics


def build(
    target: options.Target,
    model: options.Model,
    recipe: options.Recipe = None,
    out: Annotated[
        Path | None, Option(help="Folder to build in. Default: build/MODEL/TARGET.")
    ] = None,
    study: Annotated[
        Path | None,
        Option(
            help="Folder of the model, whose checkpoint and study builds for all targets share. "
            "Default: build/MODEL, or with --out that folder."
        ),
    ] = None,
    levels: options.Levels = None,
    haystack: options.Haystack = None,
    calibration: options.Calibration = None,
    imatrix: options.Imatrix = None,
    publish: Annotated[
        str | None,
        Option(help="Publish what passed to the Hub: OWNER or OWNER/NAME. See 'quantkit publish'."),
    ] = None,
    private: Annotated[
        bool, Option("--private", help="With --publish: make the new repository private.")
    ] = False,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.api import build as run
    from quantkit.build.run import check_gate, home_of
    from quantkit.config.recipe import recipe_for
    from quantkit.core.files import chosen_folder
    from quantkit.models.choose import choose_model
    from quantkit.plan.targets import choose_target

    gpus, chosen = choose_target(target), recipe_for(model, recipe, levels)
    name = choose_model(model).name
    home = chosen_folder(home_of(study) if study else out, Path("build") / name)
    folder = chosen_folder(out, home / gpus.name)
    _check_publishing(publish, private, name, chosen)
    console = Console(quiet=quiet or as_json)
    results = run(
        model, gpus, folder, recipe=chosen, calibration=calibration, imatrix=imatrix,
        study=home, haystack=haystack, for_release=publish is not None, workers=workers,
        quiet=console.quiet,
    )  # fmt: skip
    _show(console, folder, results)
    facts: dict[str, object] = {"folder": str(folder), "levels": [r.facts() for r in results]}
    if publish is not None and any(r.passed and not r.baseline for r in results):
        facts["published"] = _published(folder, publish, private, console)
    if as_json:
        console.json(facts)
    check_gate(results)  # the other levels are published before


def _check_publishing(to: str | None, private: bool, name: str, recipe: Recipe) -> None:
    """See that publishing is possible, before hours of work."""
    if to is None and private:
        raise InputError("--private says how to publish: give --publish too")
    if to is None:
        return
    from quantkit.release.destination import check_access

    if all(level.baseline for level in recipe.levels):
        raise InputError(
            "--publish: all levels are baselines, which are not meant for release; 'quantkit "
            "publish --levels' publishes one all the same"
        )
    check_access(to, name, private=private)


def _show(console: Console, folder: Path, results: Sequence[LevelResult]) -> None:
    """Print the closing table, where the report is, and how to run the first that passed."""
    _closing_table(console, results)
    console.line(f"Report: {folder / 'report.html'}")
    best = next((r for r in results if r.passed), None)
    if best is not None:
        path = shlex.quote(str(folder / best.files[0]))
        command = best.command.replace(Path(best.files[0]).name, path, 1)
        console.line(f"Run it:  {command}")
        if best.unchecked is not None:
            console.line(best.unchecked)


def _published(folder: Path, to: str, private: bool, console: Console) -> dict[str, object]:
    """Publish a finished build; an error is followed by the command that publishes it."""
    from quantkit.cli.publish import publish_build
    from quantkit.release.publish import PublishJob

    try:
        return publish_build(PublishJob(folder, to, private=private), console)
    except QuantkitError:
        more = " --private" if private else ""
        command = f"quantkit publish {shlex.quote(str(folder))} --to {shlex.quote(to)}{more}"
        console.error(f"the build is finished, but not published; publish it with: {command}")
        raise


def _closing_table(console: Console, results: Sequence[LevelResult]) -> None:
    """A row of two lines for each level, so that 80 columns hold every figure."""
    columns = (
        "level\n[dim]gate[/]", "size\n[dim]bits a weight[/]", "GPU\n[dim]fullest[/]",
        "KLD\n[dim]99.9 %[/]", "same top\n[dim]PPL[/]", "retrieval\n[dim]tokens[/]",
    )  # fmt: skip
    rows = []
    for r in results:
        gate = r.retrieval.gated[0]
        color = "green" if r.passed else "yellow" if r.baseline else "bold red"
        fullest = max(r.placed.placement.gpus, key=lambda gpu: gpu.total_bytes)
        rows.append(
            (
                marked(
                    f"{{}}[dim]{{}}[/]\n[{color}]{{}}[/]",
                    r.name,
                    " baseline" if r.baseline else "",
                    r.verdict.partition(",")[0],
                ),
                _two_lines(gib_text(r.size_bytes), f"{r.bits_per_weight:.2f}"),
                _two_lines(
                    f"{fullest.total_bytes / GIB:.1f} GiB", f"of {fullest.capacity_bytes / GIB:g}"
                ),
                *_divergence_cells(r.kld),
                _two_lines(
                    f"{gate.hits}/{gate.trials} ≥ {gate.lower_bound:.1%}",
                    f"{gate.context_tokens:,}",
                ),
            )
        )
    console.table(columns, rows)


def _divergence_cells(kld: KLDStatistics | None) -> tuple[Cell, Cell]:
    """Mean and 99.9th percentile; share of the same top token and ratio of the perplexities."""
    from quantkit.study.kld_statistics import kld_text

    if kld is None:
        return "–", "–"
    return (
        _two_lines(kld_text(kld.mean), kld_text(kld.p999)),
        _two_lines(f"{kld.same_top:.1%}", f"× {kld.perplexity_ratio:.3f}"),
    )


def _two_lines(first: str, second: str) -> Cell:
    return marked("{}\n[dim]{}[/]", first, second)
