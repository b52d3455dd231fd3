"""What else would fit a target: the longest context, the largest level, other KV cache types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.asked_memory import ContextLadder, ask_ladders
from quantkit.card_memory import CardMemory
from quantkit.errors import DoesNotFitError
from quantkit.levels import LevelRecipe
from quantkit.planned_model import PlannedModel
from quantkit.planning import largest_bytes, model_host_bytes
from quantkit.quant_types import BY_NAME
from quantkit.sizes import gib_text
from quantkit.stages.allocate import fill_cards
from quantkit.stages.place import Placement, place
from quantkit.stages.quantize import artifact_bytes, overhead_bytes
from quantkit.target import Target
from quantkit.type_rules import Costs, smallest_types

CONTEXT_STEP = 1024
SHORTEST_CONTEXT = 4096
SMALLER_KV = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Quantized KV cache types, the largest first."""
LARGEST = LevelRecipe(name="max")


def longest_context(
    model: PlannedModel, types: Mapping[str, str], ladder: ContextLadder
) -> int | None:
    """Tokens of the longest context within the ladder at which the cards hold the model.

    A multiple of CONTEXT_STEP, or an end of the ladder; None where not even its first rung fits.
    """

    def fits(tokens: int) -> bool:
        target = ladder.target
        return place(model.tensors, types, ladder.memory(tokens), target).fits

    low, high = ladder.rungs[0][0], ladder.rungs[-1][0]
    if fits(high):
        return high
    if not fits(low):
        return None
    first, last = low // CONTEXT_STEP, high // CONTEXT_STEP
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if fits(middle * CONTEXT_STEP) else (first, middle)
    return max(low, first * CONTEXT_STEP)


@dataclass(frozen=True)
class Largest:
    """The largest artifact that fits: its types, its bytes, and where its layers lie."""

    types: Mapping[str, str]
    total_bytes: int
    placement: Placement


def largest_level(
    model: PlannedModel, costs: Costs, target: Target, memory: CardMemory
) -> Largest | None:
    """The largest artifact that the cards hold, whatever the target's own budget; None: nothing.

    Args:
        costs: nominal ones will do: they show sizes.
    """
    tensors = model.tensors
    room = memory.weights_room + model_host_bytes(model, costs)
    budget = min(room, largest_bytes(model, costs, LARGEST))
    overhead = overhead_bytes(model.stem, model.metadata, tensors)
    try:
        types = fill_cards(tensors, costs, budget, overhead, LARGEST, memory)
    except DoesNotFitError:
        return None
    placement = place(tensors, types, memory, target)
    total = artifact_bytes(model.stem, model.metadata, tensors, types)
    return Largest(types, total, placement) if placement.fits else None


def ways_out(model: PlannedModel, costs: Costs, target: Target) -> list[str]:
    """What would fit where the target does not hold the smallest form of the model, in words.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    kinds = _smaller_kv(target) if target.flash_attention else []
    targets = [target, *(target.changed(kv_type=kind) for kind in kinds)]
    contexts = (min(SHORTEST_CONTEXT, target.context_tokens), target.context_tokens)
    ladders, _ = ask_ladders(model.metadata, model.tensors, model.geometry, targets, contexts)
    types = smallest_types(model.tensors, costs, LARGEST)
    found = []
    for ladder in ladders:
        tokens = longest_context(model, types, ladder)
        if tokens is None:
            continue
        changed = ladder.target.changed(context_tokens=tokens)
        largest = largest_level(model, costs, changed, ladder.memory(tokens))
        size = "" if largest is None else f" ({gib_text(largest.total_bytes)})"
        found.append(f"{tokens:,} tokens of {changed.kv_type} context{size}")
        if tokens >= target.context_tokens:
            break  # a smaller cache is worse, and no longer needed
    return found


def _smaller_kv(target: Target) -> list[str]:
    bits = BY_NAME[target.kv_type.upper()].bits_per_weight
    return [kind for kind in SMALLER_KV if BY_NAME[kind.upper()].bits_per_weight < bits]
