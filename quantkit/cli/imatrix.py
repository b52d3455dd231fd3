"""`quantkit imatrix`: collects an importance matrix, or describes one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError


def imatrix(
    model: Annotated[
        Path | None,
        Argument(
            help="GGUF file to collect on; with --show, the one it was collected on, which "
            "a legacy .dat file needs to tell experts apart."
        ),
    ] = None,
    out: Annotated[Path, Option("--out", help="File to write.")] = Path("imatrix.gguf"),
    recipe: options.StudyRecipe = None,
    calibration: options.Calibration = None,
    chunks: Annotated[
        int | None, Option("--chunks", min=1, help="Number of text chunks. Default: the recipe's.")
    ] = None,
    chunk_tokens: Annotated[
        int | None,
        Option("--chunk-tokens", min=32, help="Tokens in each chunk. Default: the recipe's."),
    ] = None,
    until_covered: Annotated[
        int | None,
        Option(
            "--until-covered",
            min=0,
            help="Continue after --chunks until every expert has seen this many tokens or the "
            "text ends. Default: the recipe's.",
        ),
    ] = None,
    show: Annotated[
        Path | None,
        Option(
            "--show", help="Describe this importance matrix instead: a GGUF or a legacy .dat file."
        ),
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    """Collect an importance matrix from a model, or describe one."""
    if show is not None:
        from quantkit.cli.tables import show_imatrix

        show_imatrix(show, model, as_json)
        return
    if model is None:
        raise InputError("give the GGUF file to collect on, or --show FILE to describe an imatrix")
    from quantkit.config.recipe import recipe_for
    from quantkit.core.threads import worker_count
    from quantkit.study.run import collect_file

    changes = {"chunks": chunks, "chunk_tokens": chunk_tokens, "until_covered": until_covered}
    given = {name: value for name, value in changes.items() if value is not None}
    chosen = recipe_for("default", recipe, calibration=calibration).imatrix
    chosen = chosen.model_copy(update=given)
    console = Console(quiet=quiet or as_json)
    with console.stage("imatrix") as progress:
        facts = collect_file(model, out, chosen, worker_count(workers), progress)
    if as_json:
        console.json(facts.model_dump(mode="json"))
    console.line(f"{out}: {facts.weights} weights, {facts.tokens:,} tokens")
