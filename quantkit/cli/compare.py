"""`quantkit compare`: artifacts of one base side by side, on the same text and questions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.units import bytes_text


def compare(
    artifacts: Annotated[
        list[Path], Argument(help="GGUF files to compare, all made from one base model.")
    ],
    base: Annotated[
        Path | None, Option(help="File that KLD is measured from. Default: the largest artifact.")
    ] = None,
    text: Annotated[
        Path | None, Option(help="Text to measure KLD on. Default: the one that ships.")
    ] = None,
    chunks: Annotated[int, Option(min=1, help="Number of text chunks to evaluate.")] = 16,
    chunk_tokens: Annotated[
        int, Option(min=32, help="Tokens in each chunk; the second half is evaluated.")
    ] = 512,
    context: Annotated[
        list[int] | None,
        Option(
            min=256,
            help="Context length of the retrieval check, in tokens. May be repeated. Default: "
            "2048 and 8192, as far as all artifacts were trained for them.",
        ),
    ] = None,
    needles: Annotated[
        int,
        Option(min=1, max=400, help="Number of questions at each context length, for each seed."),
    ] = 32,
    seed: Annotated[
        list[int] | None, Option(help="Seed of a haystack. May be repeated. Default: 1, 2 and 3.")
    ] = None,
    kv: options.KV = "q8_0",
    haystack: options.Haystack = None,
    no_retrieval: Annotated[
        bool, Option("--no-retrieval", help="Leave the retrieval check out: only size and KLD.")
    ] = False,
    workers: options.Workers = None,
    out: Annotated[
        Path | None, Option(help="Folder for page, tables and picture. Default: BASE-compare.")
    ] = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.cli.tables import print_comparison
    from quantkit.report.comparison.run import DEFAULTS
    from quantkit.report.comparison.run import compare as run
    from quantkit.report.comparison.writers import comparison_facts

    asked = DEFAULTS | {
        "context_tokens": tuple(context or ()), "needles": needles, "kv_type": kv,
        "seeds": tuple(seed or (1, 2, 3)),
    }  # fmt: skip
    console = Console(quiet=quiet or as_json)
    found = run(
        artifacts, out, base=base, text=text, chunks=chunks, chunk_tokens=chunk_tokens,
        retrieval=False if no_retrieval else options.retrieval_recipe(asked), haystack=haystack,
        workers=workers, quiet=console.quiet,
    )  # fmt: skip
    if as_json:
        console.json(comparison_facts(found.comparison))
    print_comparison(console, found.comparison)
    console.line(f"Written to {found.folder}: {', '.join(path.name for path in found.written)}")
    console.line(
        f"Kept for further artifacts: {found.kept} ({bytes_text(found.kept_bytes)}; it may be "
        "deleted)"
    )
