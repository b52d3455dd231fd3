"""`quantkit targets`: the sets of GPUs that can be named, and what each holds of a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from quantkit.cli import options
from quantkit.core.console import Console, marked
from quantkit.core.errors import InputError
from quantkit.core.units import GIB, tokens_text, unit_of

if TYPE_CHECKING:
    from quantkit.config.target import Target
    from quantkit.core.console import Cell
    from quantkit.models.model import Model
    from quantkit.plan.what_if import TargetBudgets


def targets(
    model: Annotated[
        str | None,
        Option(
            help="List the largest artifact of this model that each target holds: a Hub "
            "repository (OWNER/NAME), a folder, a GGUF file, or 'demo'."
        ),
    ] = None,
    recipe: options.Recipe = None,
    target: Annotated[
        list[Path] | None, Option(help="Also list the target in this YAML file. May be repeated.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    from quantkit.plan.targets import target_list

    if recipe is not None and model is None:
        raise InputError(f"--recipe {recipe} applies to a model: give --model too")
    console = Console(quiet=as_json)
    found, why = target_list(target or [])
    if model is not None:
        facts: Any = _budgets(model, recipe, found, console)
    else:
        facts = [target.model_dump(mode="json") for target in found]
        _list(found, console)
    if why is not None:
        console.note(why)
    if as_json:
        console.json(facts)


def _list(found: Sequence[Target], console: Console) -> None:
    rows = [
        (
            target.name,
            f"{sum(gpu.memory_gib for gpu in target.each_gpu):g} GiB",
            f"{target.context_tokens:,}",
            target.kv_type,
            "all that fits"
            if target.weight_budget_gib == "auto"
            else f"{target.weight_budget_gib:g} GiB",
            target.description,
        )
        for target in found
    ]
    console.table(("target", "memory", "context", "KV", "weights", "description"), rows)


def _budgets(
    model: str, recipe: str | None, found: Sequence[Target], console: Console
) -> dict[str, Any]:
    """Print the largest artifact of each target at each context; returns the facts."""
    from quantkit.config.recipe import recipe_for
    from quantkit.llamacpp.memory_plan import asking
    from quantkit.models.choose import choose_model, open_shapes
    from quantkit.models.model import Model
    from quantkit.plan.level_plans import nominal_costs
    from quantkit.plan.what_if import budgets_of, contexts_for

    choice = choose_model(model)
    rules = recipe_for(model, recipe)
    with asking():
        keep = rules.convert.mtp == "keep"
        with console.stage("headers") as progress:
            source = open_shapes(choice, progress, keep_prediction=keep)
        planned = Model.of(choice.name, source)
        contexts = contexts_for(planned)
        lengths = ", ".join(tokens_text(tokens) for tokens in contexts)
        console.note(
            f"asking llama.cpp for the memory of {len(found)} targets at {lengths} tokens …"
        )
        with console.stage("targets") as progress:
            budgets, estimated = budgets_of(
                planned, nominal_costs(planned, rules.measure), found, progress
            )
    _show(planned, budgets, console)
    if estimated is not None:
        console.note(estimated)
    return {
        "model": choice.name,
        "estimated": estimated,
        "targets": [_facts(one, planned.elements) for one in budgets],
    }


def _show(model: Model, found: Sequence[TargetBudgets], console: Console) -> None:
    """Print the table, in MiB where no artifact has a tenth of a GiB."""
    sizes = [size for one in found for size in one.budgets.values() if size is not None]
    word, unit = unit_of(sizes or [GIB])

    def cell(size: int | None) -> Cell:
        if size is None:
            return "-"
        return marked("{} [dim]{}[/]", f"{size / unit:.2f}", f"{8 * size / model.elements:.2f}")

    rows = [
        (one.target.name, *map(cell, one.budgets.values()), one.target.kv_type) for one in found
    ]
    console.heading(
        f"{model.name}: the largest artifact that fits at each context, {word} and bits per weight"
    )
    lengths = [tokens_text(tokens) for tokens in found[0].budgets]
    console.table(("target", *lengths, "KV"), rows)
    for one in found:
        if one.refused is not None:
            console.note(f"{one.target.name}: {one.refused}")


def _facts(one: TargetBudgets, elements: int) -> dict[str, Any]:
    return {
        "target": one.target.name,
        "kv_type": one.target.kv_type,
        "ubatch_tokens": one.target.ubatch_tokens,
        "refused": one.refused,
        "budgets": [
            {
                "context_tokens": tokens,
                "largest_bytes": size,
                "bits_per_weight": None if size is None else 8 * size / elements,
            }
            for tokens, size in one.budgets.items()
        ],
    }
