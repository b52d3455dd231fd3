"""`quantkit targets`: the card sets that ship with quantkit."""

from __future__ import annotations

from quantkit.console import Console


def targets(as_json: bool) -> None:
    """List the targets that ship with quantkit."""
    from quantkit.target import known_targets, load_target

    console = Console(quiet=as_json)
    found = [load_target(name) for name in known_targets()]
    if as_json:
        console.json([target.model_dump(mode="json") for target in found])
    rows = [
        (
            target.name,
            f"{sum(card.memory_gib for card in target.each_card):g} GiB",
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
