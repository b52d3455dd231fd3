"""`quantkit niah`: the retrieval check on one file, or on a running llama-server."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantkit.cli.output_files import check_writable
from quantkit.cli.retrieval_table import print_retrieval
from quantkit.core.console import Console
from quantkit.core.errors import GateError, InputError
from quantkit.plan.machine import worker_count

if TYPE_CHECKING:
    from quantkit.config.recipe import RetrievalRecipe
    from quantkit.core.progress import Progress
    from quantkit.quantize.integrity import Integrity
    from quantkit.retrieval.results import Retrieval

PROBE_QUESTIONS = 8
"""Of each probe that is asked for without a number."""
AS_SERVED = "as served"
OPTIONS = {
    "kv_type": "kv", "context_tokens": "context", "minimum_lower_bound": "minimum",
    "probes": "probe", "depths": "depth", "seeds": "seed", "near_misses": "near-misses",
    "answer_tokens": "answer-tokens",
}  # fmt: skip
"""Fields of the recipe whose option is named otherwise."""


@dataclass(frozen=True)
class Where:
    """What the check runs on, and how.

    Attributes:
        model: a GGUF file; None with an endpoint.
        endpoint: of a running llama-server.
        source: what the file was made from; its weights are compared first.
        fresh: each question after a prefill of its own.
    """

    model: Path | None
    endpoint: str | None
    source: str | None
    haystack: Path | None
    out: Path | None
    workers: int | None
    fresh: bool


def niah(where: Where, settings: Mapping[str, Any], quiet: bool, as_json: bool) -> None:
    """Ask, print, write, and raise when the gate is missed."""
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.retrieval import gate

    recipe = _recipe(settings)
    if (where.model is None) == (where.endpoint is None):
        raise InputError("give a GGUF file, or --endpoint of a running llama-server; one of them")
    gate.check_gate_is_possible(recipe)
    if where.model is not None:
        GGUFSource(where.model)  # tells what is wrong with the file before anything is printed
    console = Console(quiet=quiet)
    console.note(gate.gate_words(recipe))
    began = time.monotonic()
    if where.model is not None:
        name, folder, found, facts = _on_file(where, where.model, recipe, console)
    else:
        name, folder, found, facts = _on_server(where, str(where.endpoint), recipe, console)
    if as_json:
        console.json(facts)
    first = found.gated(recipe.gated)[0]
    console.done("niah", f"{first.hits}/{first.trials} {first.name}", time.monotonic() - began)
    print_retrieval(console, found, served=where.model is None)
    console.line(f"Answers and heatmap: {folder}")
    if not facts["passed"]:
        words = "; ".join(
            f"{s.name} found {s.hits}/{s.trials}, at least {s.lower_bound:.1%}"
            for s in found.gated(recipe.gated)
        )
        cut = sum(s.truncated for s in found.gated(recipe.gated))
        advice = f"; {cut} were cut off: try a larger --answer-tokens" if cut else ""
        raise GateError(
            f"{name}: at {max(recipe.context_tokens):,} tokens {words}; "
            f"{recipe.minimum_lower_bound:.1%} is needed{advice}"
        )


def probes_of(words: Sequence[str]) -> dict[str, int]:
    """`near-miss`, `two-hop=16` or `all` as probe → how many questions.

    Raises:
        InputError: a number is none.
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


def _recipe(settings: Mapping[str, Any]) -> RetrievalRecipe:
    from pydantic import ValidationError

    from quantkit.config.recipe import RetrievalRecipe

    try:
        return RetrievalRecipe.model_validate(settings)
    except ValidationError as error:
        problems = []
        for e in error.errors():
            field = str(e["loc"][0]) if e["loc"] else ""
            option = f"--{OPTIONS.get(field, field)}: " if field else ""
            problems.append(option + e["msg"].removeprefix("Value error, "))
        raise InputError("; ".join(problems)) from None


def _on_file(
    where: Where, model: Path, recipe: RetrievalRecipe, console: Console
) -> tuple[str, Path, Retrieval, dict[str, Any]]:
    from quantkit.core.files import identity
    from quantkit.llamacpp.devices import device_settings
    from quantkit.models.gguf_source import GGUFSource
    from quantkit.retrieval.run.check import CheckSettings, check_retrieval
    from quantkit.retrieval.run.verdict import validation_json

    source = GGUFSource(model)
    integrity = None
    if where.source is not None:
        with console.stage("weights") as progress:
            integrity = _compared(model, where.source, progress)
    folder = where.out or Path(f"{model.stem}-niah")
    check_writable(folder / "niah.jsonl", source.paths)
    kv_type = recipe.kv_type or "q8_0"
    devices = device_settings(worker_count(where.workers))
    settings = CheckSettings(devices, kv_type, fresh=where.fresh)
    parts = {"model": identity(source.paths), "fresh": where.fresh, **_parts(where, recipe)}

    def run(work: Path) -> tuple[str, Retrieval, dict[str, Any]]:
        with console.stage("niah") as progress:
            found = check_retrieval(
                model, recipe, settings, folder / "niah.jsonl", work, where.haystack, progress
            )
        return model.stem, found, validation_json(found, None, recipe, kv_type, integrity)

    return model.name, folder, *_written(folder, parts, run)


def _compared(model: Path, source: str, progress: Progress) -> Integrity:
    """Names, shapes, hyperparameters and sampled weights of a file against its source's."""
    from quantkit.models.choose import choose_model, open_source
    from quantkit.quantize.integrity import check_artifact

    choice = choose_model(source)
    if choice.path is None:
        raise InputError(
            f"--source {source} is a repository; download it first: quantkit download {source}"
        )
    made_from = open_source(choice, choice.path)
    prefix = f"{made_from.metadata['general.architecture'].value}."
    own = {
        k: v
        for k, v in made_from.metadata.items()
        if k.startswith(prefix) or k == "general.architecture"
    }
    return check_artifact(model, made_from, own, progress=progress)


def _on_server(
    where: Where, endpoint: str, recipe: RetrievalRecipe, console: Console
) -> tuple[str, Path, Retrieval, dict[str, Any]]:
    from quantkit.core.progress import SILENT
    from quantkit.llamacpp.endpoint import Endpoint
    from quantkit.retrieval.run.check_server import check_served
    from quantkit.retrieval.run.verdict import validation_json

    for option, given in (("--fresh", where.fresh), ("--source", where.source is not None)):
        if given:
            raise InputError(f"{option} needs the file itself; it cannot be used with --endpoint")
    address = Endpoint(endpoint, SILENT).address  # a password in it is not written down
    folder = where.out or Path("server-niah")
    check_writable(folder / "niah.jsonl", [])

    def run(work: Path) -> tuple[str, Retrieval, dict[str, Any]]:
        with console.stage("niah") as progress:
            found, served = check_served(
                address, recipe, folder / "niah.jsonl", work, where.haystack, progress
            )
        facts = validation_json(found, None, recipe, AS_SERVED)
        return served.model or AS_SERVED, found, {**facts, "server": asdict(served)}

    parts = {"endpoint": address, **_parts(where, recipe)}
    found, facts = _written(folder, parts, run)
    return facts["server"]["model"] or address, folder, found, facts


def _parts(where: Where, recipe: RetrievalRecipe) -> dict[str, Any]:
    """What the kept work of a check belongs to."""
    from quantkit.core.files import content_id
    from quantkit.llamacpp.shared_libraries import library_version

    return {
        "recipe": recipe.model_dump(mode="json"),
        "haystack": None if where.haystack is None else content_id(where.haystack),
        "llama-cpp-python": library_version(),
    }


def _written(
    folder: Path,
    parts: Mapping[str, Any],
    run: Callable[[Path], tuple[str, Retrieval, dict[str, Any]]],
) -> tuple[Retrieval, dict[str, Any]]:
    """What `run` found, with its picture, titled as it says, and validation.json in `folder`."""
    from quantkit.core.files import write_json
    from quantkit.core.work_folders import resumable
    from quantkit.report.retrieval_heatmap import draw_heatmap

    with resumable(folder / ".work", parts) as work:
        title, found, facts = run(work)
        draw_heatmap(found.answers, f"{title}, {found.name}", folder / "heatmap.png")
        write_json(folder / "validation.json", facts)
    return found, facts
