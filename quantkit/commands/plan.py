"""`quantkit plan`: what fits a target, card by card."""

from __future__ import annotations

from quantkit.console import Console
from quantkit.errors import InputError
from quantkit.sizes import bytes_text, gb_text, gib_text


def plan(
    target: str,
    model: str,
    recipe: str | None,
    context: int | None,
    kv: str | None,
    as_json: bool,
) -> None:
    """Print card by card what each level would hold, with nominal types: no weights are read."""
    from quantkit import planning
    from quantkit.families.geometry import geometry_of
    from quantkit.models import choose_model, open_source
    from quantkit.recipe import recipe_for
    from quantkit.results import placement_json
    from quantkit.stages.quantize import overhead_bytes
    from quantkit.target import load_target

    card_set = load_target(target).changed(context_tokens=context, kv_type=kv)
    choice = choose_model(model)
    if choice.kind == "repository":
        raise InputError(
            f"plan reads models on this disk: 'quantkit download {model}', then give its folder"
        )
    chosen = recipe_for(model, recipe)
    source = open_source(choice, keep_prediction=chosen.convert.mtp == "keep")
    geometry, tensors = geometry_of(source.metadata), source.tensors
    levels, notes = planning.plan_levels(chosen, card_set, tensors, geometry)
    errors = planning.nominal_errors(tensors, chosen.measure)
    overhead = overhead_bytes(choice.name, source.metadata, tensors)
    elements = sum(info.elements for info in tensors)
    console = Console(quiet=as_json)
    console.heading(f"{choice.name} on {card_set.name} ({card_set.description})")
    plans = []
    for level in levels:
        fitted = planning.fit(level, tensors, errors, overhead, geometry, card_set)
        placement, total = fitted.placement, fitted.allocation.total_bytes
        file = f"{choice.name}-{level.recipe.name}.gguf"
        plans.append(
            {"level": level.recipe.name, "total_bytes": total, **placement_json(placement, file)}
        )
        console.line(
            f"\n{level.recipe.name}: {gib_text(total)} ({gb_text(total)}), "
            f"{8 * total / elements:.2f} bits a weight, {placement.context_tokens:,} tokens of "
            f"{placement.kv_type} context"
        )
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
