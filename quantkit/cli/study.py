"""`quantkit imatrix` and `quantkit measure`: an importance matrix, and the errors of tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError

if TYPE_CHECKING:
    from quantkit.study.sensitivity import Sensitivity

SHOWN = 10
"""Of the most sensitive tensors."""


def imatrix(
    model: Annotated[
        Path | None,
        Argument(
            help="GGUF file to collect on; with --show, the one it was collected on, which "
            "a legacy .dat file needs to tell experts apart."
        ),
    ] = None,
    out: Annotated[Path, Option(help="File to write.")] = Path("imatrix.gguf"),
    recipe: options.StudyRecipe = None,
    calibration: options.Calibration = None,
    chunks: Annotated[
        int | None, Option(min=1, help="Number of text chunks. Default: the recipe's.")
    ] = None,
    chunk_tokens: Annotated[
        int | None, Option(min=32, help="Tokens in each chunk. Default: the recipe's.")
    ] = None,
    until_covered: Annotated[
        int | None,
        Option(
            min=0,
            help="Continue after --chunks until every expert has seen this many tokens or the "
            "text ends. Default: the recipe's.",
        ),
    ] = None,
    show: Annotated[
        Path | None,
        Option(help="Describe this importance matrix instead: a GGUF or a legacy .dat file."),
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    if show is not None:
        from quantkit.cli.tables import show_imatrix

        show_imatrix(show, model, as_json)
        return
    if model is None:
        raise InputError("give the GGUF file to collect on, or --show FILE to describe an imatrix")
    from quantkit.config.recipe import recipe_for
    from quantkit.core.threads import worker_count
    from quantkit.study.run import collect_file

    given = options.given(chunks=chunks, chunk_tokens=chunk_tokens, until_covered=until_covered)
    chosen = recipe_for("default", recipe, calibration=calibration).imatrix
    chosen = chosen.model_copy(update=given)
    console = Console(quiet=quiet or as_json)
    with console.stage("imatrix", out) as progress:
        facts = collect_file(model, out, chosen, worker_count(workers), progress)
    if as_json:
        console.json(facts.model_dump(mode="json"))
    console.line(f"{out}: {facts.weights} weights, {facts.tokens:,} tokens")


def measure(
    model: Annotated[Path, Argument(help="GGUF file to measure: unquantized, or in Q8_0.")],
    imatrix: Annotated[
        Path, Option(help="Importance matrix of the model: a GGUF or a legacy .dat file.")
    ],
    out: Annotated[Path, Option(help="File to write.")] = Path("sensitivity.json"),
    recipe: options.StudyRecipe = None,
    calibration: options.Calibration = None,
    cost_tokens: Annotated[
        int | None,
        Option(min=0, help="Tokens to measure costs on; 0: errors only. Default: the recipe's."),
    ] = None,
    sample_rows: Annotated[
        int | None,
        Option(min=0, help="Rows of each matrix to measure; 0 for all. Default: the recipe's."),
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.config.recipe import recipe_for
    from quantkit.core.threads import worker_count
    from quantkit.study.run import measure_file

    chosen = recipe_for("default", recipe, calibration=calibration)
    given = options.given(cost_tokens=cost_tokens, sample_rows=sample_rows)
    rules = chosen.measure.model_copy(update=given)
    console = Console(quiet=quiet or as_json)
    with console.stage("measure", out) as progress:
        found = measure_file(
            model, imatrix, out, rules, chosen.imatrix, worker_count(workers), progress,
            inputs=() if recipe is None else (Path(recipe),),
        )  # fmt: skip
    pairs = sum(len(kinds) for kinds in found.errors.values())
    if as_json:
        facts = {"file": str(out), "tensors": len(found.errors), "pairs": pairs}
        console.json(
            facts | {"kld_of_1_percent_error": {name: cost.mean for name, cost in found.dearest()}}
        )
    console.line(f"{out}: {len(found.errors)} tensors, {pairs} (tensor, type) pairs")
    if found.costs:
        _show_costs(console, found)


def _show_costs(console: Console, found: Sensitivity) -> None:
    """Print the tensors whose errors cost the most, beside the median tensor."""
    from quantkit.study.kld_statistics import kld_with_error

    dearest = found.dearest()
    middle = dearest[len(dearest) // 2][1].mean
    rows = [
        (
            name,
            kld_with_error(cost.mean, cost.standard_error),
            f"{cost.mean / middle:.3g} ×" if middle > 0 else "–",
        )
        for name, cost in dearest[:SHOWN]
    ]
    console.table(("most sensitive tensors", "KLD of 1 % error", "of the median"), rows)
