"""`quantkit plan`: what fits a target, card by card."""

from __future__ import annotations

import dataclasses

from quantkit.console import Console
from quantkit.errors import InputError
from quantkit.sizes import bytes_text, gb_text, gib_text


def plan(
    target: str,
    model: str,
    recipe: str | None,
    context: int | None,
    kv: str | None,
    levels: str | None,
    as_json: bool,
) -> None:
    """Print card by card what each level would hold, with nominal types: no weights are read."""
    from quantkit import fitting, planning
    from quantkit.models import choose_model, open_source
    from quantkit.planned_model import PlannedModel
    from quantkit.recipe import recipe_for
    from quantkit.results import fallback_text, placement_json
    from quantkit.stages.quantize import artifact_names
    from quantkit.target import load_target

    card_set = load_target(target).changed(context_tokens=context, kv_type=kv)
    choice = choose_model(model)
    if choice.kind == "repository":
        raise InputError(
            f"plan reads models on this disk: 'quantkit download {model}', then give its folder"
        )
    chosen = recipe_for(model, recipe)
    if levels is not None:
        chosen = chosen.with_levels(levels)
    source = open_source(choice, keep_prediction=chosen.convert.mtp == "keep")
    named = PlannedModel.of(choice.name, source.metadata, source.tensors)
    memory, _ = fitting.memory_of(named, card_set)
    found, notes = planning.plan_levels(chosen, card_set, named, memory)
    costs = planning.nominal_costs(named, chosen.measure)
    console = Console(quiet=as_json)
    console.heading(f"{choice.name} on {card_set.name} ({card_set.description})")
    plans = []
    for level in found:
        planned = dataclasses.replace(named, stem=f"{choice.name}-{level.recipe.name}")
        fitted = fitting.fit(level, planned, costs, card_set, memory, planning.NOMINAL_GAP)
        placement, total = fitted.placement, fitted.allocation.total_bytes
        types = fitted.allocation.types
        file = artifact_names(planned.stem, planned.metadata, planned.tensors, types)[0]
        plans.append(
            {"level": level.recipe.name, "total_bytes": total, **placement_json(placement, file)}
        )
        console.line(
            f"\n{level.recipe.name}: {gib_text(total)} ({gb_text(total)}), "
            f"{8 * total / named.elements:.2f} bits a weight, {placement.context_tokens:,} tokens "
            f"of {placement.kv_type} context"
        )
        if level.stock is not None and level.stock.fallbacks:
            console.note(fallback_text(level.stock.fallbacks))
        rows = [
            (
                f"{index} {card.name}",
                str(card.layers),
                bytes_text(card.weights_bytes),
                bytes_text(card.context_bytes),
                bytes_text(card.compute_bytes),
                bytes_text(card.reserve_bytes),
                bytes_text(card.free_bytes),
                console.bar(card.total_bytes / card.capacity_bytes),
            )
            for index, card in enumerate(placement.cards)
        ]
        columns = ("card", "layers", "weights", "context", "compute", "reserve", "free", "filled")
        console.table(columns, rows)
        console.line(f"Run it:  {placement.command(file)}")
    for sentence in notes:
        console.note(sentence)
    if as_json:
        console.json({"model": choice.name, "target": card_set.name, "levels": plans})
