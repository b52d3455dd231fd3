"""Decides before any work what will be built: which levels, how many bytes, whether they fit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.errors import DoesNotFitError, InputError
from quantkit.families.geometry import ModelGeometry
from quantkit.quant_types import BY_NAME
from quantkit.recipe import LevelRecipe, MeasureRecipe, Recipe, RetrievalRecipe
from quantkit.retrieval.statistics import CONFIDENCE, lower_bound
from quantkit.sizes import GIB, gib_text
from quantkit.stages.allocate import Allocation, allocate, smallest_bytes
from quantkit.stages.measure import admissible, is_quantizable
from quantkit.stages.place import Placement, check_fits, compute_buffers, place
from quantkit.target import Target
from quantkit.values import TensorInfo

LADDER = (8192, 32768, 131072)
MAX_ROUNDS = 40
SMALLEST_STEP_BYTES = 1 << 20
HEADER_ALLOWANCE_BYTES = 16 << 20  # a vocabulary of 131072 with merges takes about 6 MiB


@dataclass(frozen=True)
class LevelPlan:
    """A level with the bytes that its file may have."""

    recipe: LevelRecipe
    budget_bytes: int


@dataclass(frozen=True)
class Fitted:
    """An allocation and the placement that holds it."""

    allocation: Allocation
    placement: Placement


def nominal_errors(
    tensors: Sequence[TensorInfo], recipe: MeasureRecipe
) -> dict[str, dict[str, float]]:
    """Errors as they would be if a bit more always halved the noise: good enough for sizes.

    Stands in for sensitivity.json before anything is measured; tensors of the repeating layers
    are taken to have an imatrix.
    """
    errors = {}
    for info in tensors:
        if is_quantizable(info):
            kinds = admissible(info, info.name.startswith("blk."), recipe.candidates)
            if kinds:
                errors[info.name] = {kind.name: 4.0**-kind.bits_per_weight for kind in kinds}
    return errors


def target_budget(target: Target, geometry: ModelGeometry) -> int:
    """Bytes of weights that the target allows: its own number, but no more than its cards leave."""
    cards = target.each_card
    context = min(target.context_tokens, geometry.trained_context_tokens)
    compute = compute_buffers(geometry, context, target.ubatch_tokens, len(cards))
    room = sum(int((c.memory_gib - c.reserve_gib) * GIB) - compute.card for c in cards)
    kept = sum(layer.context_bytes(context, target.kv_type) for layer in geometry.layers)
    left = max(room - compute.output - kept, 0)
    fixed = target.weight_budget_bytes
    return left if fixed is None else min(fixed, left)


def plan_levels(
    recipe: Recipe, target: Target, tensors: Sequence[TensorInfo], geometry: ModelGeometry
) -> tuple[list[LevelPlan], list[str]]:
    """The levels that can be built, and a sentence for each that the target rules out.

    A level larger than the target's budget is left out; one without a size of its own gets the
    whole budget, but never more than the model has in its largest types.

    Raises:
        DoesNotFitError: no level can be built.
    """
    limit = target_budget(target, geometry)
    elements = sum(info.elements for info in tensors)
    errors = nominal_errors(tensors, recipe.measure)
    largest = _largest_bytes(tensors, errors)
    plans, left_out = [], []
    for level in recipe.levels:
        smallest = smallest_bytes(tensors, errors, level.minimum)
        wanted = limit
        if level.bits_per_weight is not None:
            wanted = int(level.bits_per_weight * elements / 8)
            if wanted > limit:
                left_out.append(
                    f"level {level.name} ({gib_text(wanted)}) exceeds what {target.name} "
                    f"leaves for weights ({gib_text(limit)})"
                )
                continue
            if wanted < smallest:
                raise DoesNotFitError(
                    f"level {level.name} asks for {level.bits_per_weight:g} bits a weight "
                    f"({gib_text(wanted)}), but the smallest types that its tensors' rows and its "
                    f"minimum allow take {8 * smallest / elements:.2f} ({gib_text(smallest)}); "
                    "raise its bits_per_weight or lower its minimum"
                )
        plans.append(LevelPlan(level, min(wanted, largest)))
    if not plans:
        smallest = smallest_bytes(tensors, errors, {})
        need = f"its smallest form needs {gib_text(smallest)}"
        raise DoesNotFitError(
            f"nothing fits {target.name}: {'; '.join(left_out)}; {need}; "
            + (
                "add a level without bits_per_weight to the recipe: it uses all that is there"
                if smallest <= limit
                else f"{gib_text(smallest - limit)} too much: choose a larger target"
            )
        )
    return plans, left_out


def _largest_bytes(tensors: Sequence[TensorInfo], errors: Mapping[str, Mapping[str, float]]) -> int:
    """A bound of the file's size with every tensor in its largest candidate type."""
    total = HEADER_ALLOWANCE_BYTES
    for info in tensors:
        names = errors.get(info.name) or {info.type_name: 0.0}
        total += max(BY_NAME[name].size_bytes(info.elements) + 32 for name in names)
    return total


def fit(
    plan: LevelPlan,
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    overhead_bytes: int,
    geometry: ModelGeometry,
    target: Target,
) -> Fitted:
    """Allocate within the level's budget, and lower it until every card holds its part.

    Raises:
        DoesNotFitError: not even the smallest types fit the cards.
    """
    budget = plan.budget_bytes
    allocation = allocate(tensors, errors, budget, overhead_bytes, plan.recipe.minimum)
    for _ in range(MAX_ROUNDS):
        placement = place(tensors, allocation.types, geometry, target)
        if placement.fits:
            break
        budget = allocation.total_bytes - max(placement.overflow_bytes, SMALLEST_STEP_BYTES)
        try:
            allocation = allocate(tensors, errors, budget, overhead_bytes, plan.recipe.minimum)
        except DoesNotFitError:
            break  # the placement's own words say which card overflows, and by how much
    check_fits(placement, target)
    return Fitted(dataclasses.replace(allocation, budget_bytes=plan.budget_bytes), placement)


def retrieval_for(
    recipe: RetrievalRecipe, target: Target, trained_context_tokens: int
) -> tuple[RetrievalRecipe, str | None]:
    """The retrieval check with its lengths worked out, and why some were left out.

    A recipe without lengths is checked on a ladder that ends at the target's own context; no
    length exceeds what the model was trained for.
    """
    if not recipe.context_tokens:
        full = min(target.context_tokens, trained_context_tokens)
        ladder = (*(rung for rung in LADDER if rung < full), full)
        return recipe.model_copy(update={"context_tokens": ladder}), None
    lengths = tuple(n for n in sorted(recipe.context_tokens) if n <= trained_context_tokens)
    if lengths == tuple(sorted(recipe.context_tokens)):
        return recipe, None
    lengths = lengths or (trained_context_tokens,)
    changed = recipe.model_copy(update={"context_tokens": lengths})
    return changed, (
        f"the model was trained for {trained_context_tokens} tokens: retrieval is checked up to "
        f"{lengths[-1]}"
    )


def check_gate_is_possible(recipe: RetrievalRecipe) -> None:
    """Raise when even a perfect answer could not pass the gate: known before any work.

    Raises:
        InputError: says how many needles the bound needs.
    """
    bound = recipe.minimum_lower_bound
    trials = recipe.needles * len(recipe.seeds)
    best = lower_bound(trials, trials)
    if bound is None or best >= bound:
        return
    raise InputError(
        f"{trials} needles cannot prove a hit rate of {bound:.1%} with 95 % confidence: even "
        f"{trials}/{trials} proves only {best:.1%}; "
        + (
            "ask for less than 100 %"
            if bound >= 1
            # all of n hits prove (1 - confidence)^(1/n)
            else f"ask {math.ceil(math.log(1 - CONFIDENCE) / math.log(bound))} or more "
            "(needles x seeds)"
        )
    )
