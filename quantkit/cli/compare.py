"""`quantkit compare`: artifacts of one base side by side, on the same text and questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quantkit.cli.options import (
    HaystackOption,
    JsonOption,
    KVOption,
    QuietOption,
    WorkersOption,
    retrieval_recipe,
)
from quantkit.core.console import Console
from quantkit.core.units import bytes_text


def compare(
    artifacts: Annotated[
        list[Path], typer.Argument(help="GGUF files to compare, all made from one base model.")
    ],
    base: Annotated[
        Path | None,
        typer.Option(
            "--base", help="File that KLD is measured from. Default: the largest artifact."
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option("--text", help="Text to measure KLD on. Default: the one that ships."),
    ] = None,
    chunks: Annotated[
        int, typer.Option("--chunks", min=1, help="Number of text chunks to evaluate.")
    ] = 16,
    chunk_tokens: Annotated[
        int,
        typer.Option(
            "--chunk-tokens", min=32, help="Tokens in each chunk; the second half is evaluated."
        ),
    ] = 512,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context",
            min=256,
            help="Context length of the retrieval check, in tokens. May be repeated. Default: "
            "2048 and 8192, as far as all artifacts were trained for them.",
        ),
    ] = None,
    needles: Annotated[
        int,
        typer.Option(
            "--needles",
            min=1,
            max=400,
            help="Number of questions at each context length, for each seed.",
        ),
    ] = 32,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Seed of a haystack. May be repeated. Default: 1, 2 and 3."),
    ] = None,
    kv: KVOption = "q8_0",
    haystack: HaystackOption = None,
    no_retrieval: Annotated[
        bool,
        typer.Option("--no-retrieval", help="Leave the retrieval check out: only size and KLD."),
    ] = False,
    workers: WorkersOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for page, tables and picture. Default: BASE-compare."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Compare files of one model by size, KLD, retrieval and speed."""
    from quantkit.cli.compare_table import print_comparison
    from quantkit.config.recipe import DivergenceRecipe
    from quantkit.core.threads import worker_count
    from quantkit.report.comparison.facts import comparison_facts
    from quantkit.report.comparison.run import ComparisonJob
    from quantkit.report.comparison.run import compare as run

    recipe = None
    if not no_retrieval:
        asked = {
            "context_tokens": tuple(context or ()), "needles": needles, "kv_type": kv,
            "seeds": tuple(seed or (1, 2, 3)), "minimum_lower_bound": None, "near_misses": 0,
        }  # fmt: skip
        recipe = retrieval_recipe(asked)
    divergence = DivergenceRecipe(chunks=chunks, chunk_tokens=chunk_tokens)
    console = Console(quiet=quiet or as_json)
    job = ComparisonJob(
        tuple(artifacts), base, divergence, text, recipe, haystack, out, worker_count(workers)
    )
    found = run(job, console)
    if as_json:
        console.json(comparison_facts(found.comparison))
    print_comparison(console, found.comparison)
    console.line(f"Written to {found.folder}: {', '.join(path.name for path in found.written)}")
    console.line(
        f"Kept for further artifacts: {found.kept} ({bytes_text(found.kept_bytes)}; it may be "
        "deleted)"
    )
