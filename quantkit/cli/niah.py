"""`quantkit niah`: the retrieval check on one file, or on a running llama-server."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from quantkit.cli import options
from quantkit.core.console import Console
from quantkit.core.errors import InputError

PROBE_QUESTIONS = 8
"""Of each probe that is asked for without a number."""


def niah(
    model: Annotated[Path | None, Argument(help="GGUF file to check.")] = None,
    endpoint: Annotated[
        str | None,
        Option(
            help="Check a running llama-server instead, as in http://127.0.0.1:8080. Its key, if "
            "it wants one, is read from LLAMA_API_KEY."
        ),
    ] = None,
    context: Annotated[
        list[int] | None,
        Option(
            min=256, help="Context length, in tokens. May be repeated. Default: 8192 and 32768."
        ),
    ] = None,
    beyond_training: options.BeyondTraining = False,
    needles: Annotated[
        int, Option(min=1, max=400, help="Number of questions at each context length.")
    ] = 64,
    classic: Annotated[
        bool, Option("--classic", help="Hide one needle in each prompt, at every length and depth.")
    ] = False,
    depth: Annotated[
        list[float] | None,
        Option(
            min=0,
            max=1,
            help="With --classic: depth of the needle, from 0 (beginning) to 1 (end). May be "
            "repeated. Default: 0.1, 0.5 and 0.9.",
        ),
    ] = None,
    probe: Annotated[
        list[str] | None,
        Option(
            help="Also ask these harder questions: near-miss, absent, updated, multi-value, "
            "two-hop, paraphrased or all. 8 of each, or as many as given: two-hop=16. May be "
            "repeated."
        ),
    ] = None,
    gate: Annotated[
        list[str] | None,
        Option(
            help="Task whose hit rate decides whether the check passes. May be repeated. "
            "Default: multikey, or single with --classic."
        ),
    ] = None,
    minimum: Annotated[
        float,
        Option(min=0, max=1, help="Lower bound of the hit rate (one-sided, 95 %) that passes."),
    ] = 0.9,
    seed: Annotated[
        list[int] | None, Option(help="Seed of a haystack. May be repeated. Default: 1.")
    ] = None,
    clustered: Annotated[
        bool,
        Option(
            "--clustered",
            help="Widen the bounds for haystacks of different difficulty; takes 3 seeds or more.",
        ),
    ] = False,
    kv: options.KV = "q8_0",
    thinking: Annotated[
        bool,
        Option("--thinking", help="Let the model think first; only the answer after it counts."),
    ] = False,
    answer_tokens: Annotated[
        int, Option(min=1, help="Maximum tokens of an answer, thinking included.")
    ] = 24,
    source: options.Source = None,
    fresh: Annotated[
        bool,
        Option("--fresh", help="Prefill the prompt anew for every question: hours, not minutes."),
    ] = False,
    haystack: options.Haystack = None,
    out: Annotated[
        Path | None,
        Option(help="Folder for answers, heatmap and validation.json. Default: NAME-niah."),
    ] = None,
    workers: options.Workers = None,
    quiet: options.Quiet = False,
    as_json: options.Json = False,
) -> None:
    from quantkit.build.validate import validate
    from quantkit.cli.tables import print_retrieval
    from quantkit.core.progress import SILENT
    from quantkit.llamacpp.endpoint import Endpoint

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
    recipe = options.retrieval_recipe(settings | ({"depths": tuple(depth)} if depth else {}))
    asked = [str(one) for one in (model, endpoint) if one is not None]
    if len(asked) != 1:
        raise InputError("give a GGUF file, or --endpoint of a running llama-server; one of them")
    if endpoint is not None:
        Endpoint(endpoint, SILENT)  # refuses what is no address of a server
    console, began = Console(quiet=quiet or as_json), time.monotonic()
    found = validate(
        asked[0], out, retrieval=recipe, source=source, haystack=haystack, fresh=fresh,
        beyond_training=beyond_training, workers=workers, quiet=console.quiet,
    )  # fmt: skip
    if as_json:
        console.json(found.validation.model_dump(mode="json"))
    first = found.gated[0]
    console.done("niah", f"{first.hits}/{first.trials} {first.name}", time.monotonic() - began)
    print_retrieval(console, found.retrieval, served=model is None)
    console.line(f"Answers and heatmap: {found.folder}")
    found.check_gate()


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
