"""`quantkit study`, and its parts `quantkit imatrix` and `quantkit measure`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError


def study(
    model: Annotated[
        str,
        Argument(
            help="A Hub repository (OWNER/NAME[@REVISION]), a folder, a GGUF file, or 'demo'; with "
            "--show, the model's folder will do."
        ),
    ],
    recipe: options.Recipe = None,
    out: Annotated[
        Path | None,
        Option(help="Folder of the model, for its checkpoint and study. Default: build/MODEL."),
    ] = None,
    calibration: options.Calibration = None,
    imatrix: options.Imatrix = None,
    show: Annotated[
        bool, Option("--show", help="Describe a finished study instead, and run nothing.")
    ] = False,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.api import study as run
    from quantkit.build.run import home_of, read_study
    from quantkit.cli.study_table import print_study, study_facts
    from quantkit.config.recipe import recipe_for
    from quantkit.core.files import chosen_folder
    from quantkit.models.choose import choose_model

    console = Console(quiet=quiet or as_json)
    if show:
        given = Path(model).expanduser()
        home = given if (home_of(given) / "study").is_dir() and out is None else out
        if home is None:
            home = Path("build") / choose_model(model).name
        found = read_study(home_of(home))
    else:
        folder = chosen_folder(out, Path("build") / choose_model(model).name)
        found = run(
            model, folder, recipe=recipe_for(model, recipe), calibration=calibration,
            imatrix=imatrix, workers=workers, quiet=console.quiet,
        )  # fmt: skip
    facts = study_facts(found)
    if as_json:
        console.json(facts)
    print_study(console, found, facts)


def imatrix(
    model: Annotated[
        str | None,
        Argument(
            help="A folder, a GGUF file or 'demo' to collect on; with --show, the GGUF file it was "
            "collected on, which a legacy .dat file needs to tell experts apart."
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

        show_imatrix(show, None if model is None else Path(model), as_json)
        return
    if model is None:
        raise InputError("give the model to collect on, or --show FILE to describe an imatrix")
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
    model: Annotated[str, Argument(help="Model to measure: a folder, a GGUF file, or 'demo'.")],
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
    from quantkit.cli.study_table import print_costs
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
        print_costs(console, found)
