"""What else would fit a target: the longest context, the largest level, other KV cache types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.asked_memory import ContextLadder, ask_ladders
from quantkit.card_memory import CardMemory
from quantkit.errors import DoesNotFitError
from quantkit.fitting import ATTEMPTS, place_exactly
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

    Where llama.cpp was asked for the ladder, it is asked again for what is found: that it fits as
    it is cut then, and that CONTEXT_STEP more does not.

    Returns:
        A multiple of CONTEXT_STEP, or an end of the ladder; None where not even its first rung
        fits.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    while True:
        tokens = _longest_within(model, types, ladder)
        if tokens is None or any(buffers.estimated for _, buffers in ladder.rungs):
            return tokens
        # Between rungs the ladder has a little too much: with rungs here it has not.
        finer = _with_rungs(model, ladder, tokens, tokens + CONTEXT_STEP)
        if finer == ladder or _longest_within(model, types, finer) == tokens:
            return _confirmed(model, types, finer, tokens)
        ladder = finer


def _longest_within(
    model: PlannedModel, types: Mapping[str, str], ladder: ContextLadder
) -> int | None:
    def fits(tokens: int) -> bool:
        return place(model.tensors, types, ladder.memory(tokens), ladder.target).fits

    low, high = ladder.rungs[0][0], ladder.rungs[-1][0]
    if fits(high):
        return high
    if not fits(low):
        return None
    first, last = low // CONTEXT_STEP, -(-high // CONTEXT_STEP)
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if fits(middle * CONTEXT_STEP) else (first, middle)
    return max(low, first * CONTEXT_STEP)


def _with_rungs(model: PlannedModel, ladder: ContextLadder, *tokens: int) -> ContextLadder:
    """The ladder with rungs at `tokens` too, as far as it reaches."""
    wanted = [n for n in tokens if n < ladder.rungs[-1][0]]
    if not wanted:
        return ladder
    (asked,), _ = ask_ladders(
        model.metadata, model.tensors, model.geometry, [ladder.target], wanted
    )
    return replace(ladder, rungs=tuple(sorted(dict((*ladder.rungs, *asked.rungs)).items())))


def _confirmed(
    model: PlannedModel, types: Mapping[str, str], ladder: ContextLadder, tokens: int
) -> int | None:
    """`tokens`, or the most below them at which the cards hold what llama.cpp needs exactly."""
    shortest = ladder.rungs[0][0]
    while tokens >= shortest:
        target = ladder.target.changed(context_tokens=tokens)
        if place_exactly(model, types, target, ladder.memory(tokens)).fits:
            return tokens
        below = (tokens - 1) // CONTEXT_STEP * CONTEXT_STEP
        tokens = max(below, shortest) if tokens > shortest else below
    return None


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


def largest_exactly(
    model: PlannedModel, costs: Costs, target: Target, memory: CardMemory
) -> Largest | None:
    """`largest_level`, with compute buffers that llama.cpp plans for exactly its cut.

    Args:
        memory: with the compute buffers of an even cut.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    assumed = memory
    for _ in range(ATTEMPTS):
        found = largest_level(model, costs, target, assumed)
        if found is None:
            return None
        placement = place_exactly(model, found.types, target, memory)
        if placement.fits:
            return replace(found, placement=placement)
        assumed = assumed.with_more_compute(placement.missing_bytes)
    return None


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
