"""`quantkit niah`: the retrieval check on one file, or on a running llama-server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from quantkit.cli.options import (
    HaystackOption,
    JsonOption,
    KVOption,
    QuietOption,
    SourceOption,
    WorkersOption,
    retrieval_recipe,
)
from quantkit.core.console import Console
from quantkit.core.errors import InputError

PROBE_QUESTIONS = 8
"""Of each probe that is asked for without a number."""


def niah(
    model: Annotated[Path | None, typer.Argument(help="GGUF file to check.")] = None,
    endpoint: Annotated[
        str | None,
        typer.Option(
            "--endpoint",
            help="Check a running llama-server instead, as in http://127.0.0.1:8080. Its key, if "
            "it wants one, is read from LLAMA_API_KEY.",
        ),
    ] = None,
    context: Annotated[
        list[int] | None,
        typer.Option(
            "--context",
            min=256,
            help="Context length to check, in tokens. May be repeated. Default: 8192 and 32768.",
        ),
    ] = None,
    needles: Annotated[
        int,
        typer.Option(
            "--needles", min=1, max=400, help="Number of questions at each context length."
        ),
    ] = 64,
    classic: Annotated[
        bool,
        typer.Option(
            "--classic", help="Hide one needle in each prompt, at every length and depth."
        ),
    ] = False,
    depth: Annotated[
        list[float] | None,
        typer.Option(
            "--depth",
            min=0,
            max=1,
            help="With --classic: depth of the needle, from 0 (beginning) to 1 (end). May be "
            "repeated. Default: 0.1, 0.5 and 0.9.",
        ),
    ] = None,
    probe: Annotated[
        list[str] | None,
        typer.Option(
            "--probe",
            help="Also ask these harder questions: near-miss, absent, updated, multi-value, "
            "two-hop, paraphrased or all. 8 of each, or as many as given: two-hop=16. May be "
            "repeated.",
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        typer.Option(
            "--gate",
            help="Task whose hit rate decides whether the check passes. May be repeated. "
            "Default: multikey, or single with --classic.",
        ),
    ] = None,
    minimum: Annotated[
        float,
        typer.Option(
            "--minimum",
            min=0,
            max=1,
            help="Lower bound of the hit rate (one-sided, 95 %) that passes.",
        ),
    ] = 0.9,
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", help="Seed of a haystack. May be repeated. Default: 1."),
    ] = None,
    clustered: Annotated[
        bool,
        typer.Option(
            "--clustered",
            help="Widen the bounds for haystacks of different difficulty; takes 3 seeds or more.",
        ),
    ] = False,
    kv: KVOption = "q8_0",
    thinking: Annotated[
        bool,
        typer.Option(
            "--thinking", help="Let the model think first; only the answer after it counts."
        ),
    ] = False,
    answer_tokens: Annotated[
        int,
        typer.Option(
            "--answer-tokens", min=1, help="Maximum tokens of an answer, thinking included."
        ),
    ] = 24,
    source: SourceOption = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Prefill the whole prompt for every question: hours instead of minutes.",
        ),
    ] = False,
    haystack: HaystackOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for answers, heatmap and validation.json. Default: NAME-niah.",
        ),
    ] = None,
    workers: WorkersOption = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check retrieval on a GGUF file or a server; exit 1 if it fails."""
    from quantkit.build.validate import check_inputs, validate_file, validate_server
    from quantkit.cli.retrieval_table import print_retrieval
    from quantkit.core.threads import worker_count
    from quantkit.retrieval.gate import gate_words

    settings: dict[str, Any] = {
        "mode": "classic" if classic else "one-pass",
        "context_tokens": tuple(context or (8192, 32768)),
        "needles": needles,
        "probes": probes_of(probe or []),
        "gate": tuple(gate or ()),
        "seeds": tuple(seed or (1,)),
        "clustered": clustered,
        "kv_type": kv,
        "minimum_lower_bound": minimum,
        "thinking": thinking,
        "answer_tokens": answer_tokens,
    }
    recipe = retrieval_recipe(settings | ({"depths": tuple(depth)} if depth else {}))
    check_inputs(model, endpoint, recipe)
    if endpoint is not None:
        _check_served(fresh, source)
    console, began = Console(quiet=quiet or as_json), time.monotonic()
    console.note(gate_words(recipe))
    with console.stage("niah") as progress:
        if model is not None:
            found = validate_file(
                model, recipe, out, worker_count(workers), progress,
                source=source, haystack=haystack, fresh=fresh,
            )  # fmt: skip
        else:
            found = validate_server(str(endpoint), recipe, out, progress, haystack=haystack)
    if as_json:
        console.json(found.content)
    first = found.gated[0]
    console.done("niah", f"{first.hits}/{first.trials} {first.name}", time.monotonic() - began)
    print_retrieval(console, found.retrieval, served=model is None)
    console.line(f"Answers and heatmap: {found.folder}")
    found.check_gate()


def _check_served(fresh: bool, source: str | None) -> None:
    """Refuse options that need the file itself."""
    for option, given in (("--fresh", fresh), ("--source", source is not None)):
        if given:
            raise InputError(f"{option} needs the file itself; it cannot be used with --endpoint")


def probes_of(words: Sequence[str]) -> dict[str, int]:
    """`near-miss`, `two-hop=16` or `all` as probe → how many questions.

    Raises:
        InputError: what follows `=` is not a number.
    """
    from typing import get_args

    from quantkit.config.recipe import Probe

    probes: dict[str, int] = {}
    for word in words:
        name, given, number = word.partition("=")
        if given and not number.isdecimal():
            raise InputError(f"--probe {word}: give NAME or NAME=NUMBER, as in two-hop=16")
        count = int(number) if given else PROBE_QUESTIONS
        probes.update(dict.fromkeys(get_args(Probe) if name == "all" else (name,), count))
    return probes
