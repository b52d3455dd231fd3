"""`quantkit niah`: the retrieval check on one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantkit.commands.output_files import check_writable
from quantkit.console import Console
from quantkit.errors import GateError, InputError
from quantkit.machine import worker_count


def niah(
    model: Path,
    settings: dict[str, Any],
    haystack: Path | None,
    out: Path | None,
    workers: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """The retrieval check on one GGUF file."""
    from pydantic import ValidationError

    from quantkit import planning
    from quantkit.formats.gguf_file import GGUFSource
    from quantkit.native.devices import device_settings
    from quantkit.native.shared_libraries import library_version
    from quantkit.receipts import content_id, identity, resumable, write_json
    from quantkit.recipe import RetrievalRecipe
    from quantkit.retrieval.heatmap import draw_heatmap
    from quantkit.retrieval.statistics import needed_hits
    from quantkit.stages.niah import CheckSettings, check_retrieval
    from quantkit.stages.validate import validation_json

    try:
        recipe = RetrievalRecipe.model_validate(settings)
    except ValidationError as error:
        names = {"kv_type": "kv", "context_tokens": "context", "minimum_lower_bound": "minimum"}
        problems = "; ".join(
            f"--{names.get(str(e['loc'][0]), e['loc'][0])}: {e['msg']}" for e in error.errors()
        )
        raise InputError(problems) from None
    source = GGUFSource(model)  # tells what is wrong with the file before llama.cpp is asked
    folder = out or Path(f"{model.stem}-niah")
    check_writable(folder / "niah.jsonl", source.paths)
    console = Console(quiet=quiet)
    planning.check_gate_is_possible(recipe)
    kv_type = recipe.kv_type or "q8_0"
    trials = recipe.needles * len(recipe.seeds)
    bound = recipe.minimum_lower_bound or 0.0
    console.note(
        f"passes with {needed_hits(trials, bound)} of {trials} needles at "
        f"{max(recipe.context_tokens):,} tokens"
    )
    devices = device_settings(worker_count(workers))
    parts = {
        "model": identity(source.paths),
        "recipe": recipe.model_dump(mode="json"),
        "haystack": None if haystack is None else content_id(haystack),
        "llama-cpp-python": library_version(),
    }
    with resumable(folder / ".work", parts) as work:
        with console.stage("niah") as progress:
            settings_here = CheckSettings(devices, kv_type)
            answers = folder / "niah.jsonl"
            found = check_retrieval(model, recipe, settings_here, answers, work, haystack, progress)
        draw_heatmap(found.answers, model.stem, folder / "heatmap.png")
        facts = validation_json(found, None, recipe, kv_type)
        write_json(folder / "validation.json", facts)
    if as_json:
        console.json(facts)
    for score in found.lengths:
        console.line(
            f"{score.context_tokens:>9,} tokens  multikey-{recipe.needles}  "
            f"{score.hits}/{score.trials}  at least {score.lower_bound:.1%}"
        )
    console.line(f"Answers and heatmap: {folder}")
    if not facts["passed"]:
        raise GateError(
            f"{model.name}: lower bound {found.gate.lower_bound:.1%} at "
            f"{found.gate.context_tokens} tokens, {bound:.1%} is needed"
        )
