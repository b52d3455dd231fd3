"""Decides which levels fit a target and in how many bytes, and allocates them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import MeasureRecipe, Recipe
from quantkit.core.errors import DoesNotFitError
from quantkit.core.progress import SILENT, Late, Progress
from quantkit.core.units import gib_text
from quantkit.formats.tensors import ModelHeader, TensorInfo
from quantkit.llamacpp.devices import Devices
from quantkit.llamacpp.memory_plan import Question, ask_memory
from quantkit.llamacpp.presets import StockTypes, ask_preset
from quantkit.models.model import Model
from quantkit.plan.allocate import Allocation, allocate, allocate_preset
from quantkit.plan.allowed_types import Costs, allowed_types, smallest_bytes, smallest_types
from quantkit.plan.gpu_memory import HOST, GPUMemory, layers_of, padded_bytes
from quantkit.plan.placement import Placement, check_fits, place
from quantkit.plan.type_choice import TypeChoice, check_importance
from quantkit.quantize.candidates import admissible, is_quantizable
from quantkit.quantize.quantize import artifact_bytes, overhead_bytes

ATTEMPTS = 8
"""Placements that are tried until one has no larger compute buffers than were assumed."""


@dataclass(frozen=True)
class LevelPlan:
    """A level with the bytes that its files may have; of a preset, with llama.cpp's types."""

    recipe: LevelRecipe
    budget_bytes: int
    stock: StockTypes | None = None


@dataclass(frozen=True)
class Fit:
    allocation: Allocation
    placement: Placement


def target_budget(memory: GPUMemory, host_bytes: int = 0) -> int:
    """Bytes of weights that the target allows: its own number, but no more than its GPUs leave.

    Args:
        host_bytes: of weights that lie on no GPU.
    """
    left = memory.weights_room + host_bytes
    fixed = memory.target.weight_budget_bytes
    return left if fixed is None else min(fixed, left)


def searching(progress: Progress) -> Progress:
    """For the searches of a command, which mostly take no time."""
    return Late(
        progress,
        "choosing types takes long where many tensors cost nearly the same; the search ends after "
        "a fixed number of steps with the best that it has found",
    )


def fit(
    plan: LevelPlan,
    model: Model,
    costs: Costs,
    memory: GPUMemory,
    gap: float = 0.0,
    progress: Progress = SILENT,
) -> Fit:
    """Allocate such that the level's budget and every GPU are kept, and place it.

    Args:
        gap: accepted distance from the optimal cost, relative.

    Raises:
        DoesNotFitError: not even the smallest types fit the budget or the GPUs.
    """
    tensors = model.tensors
    overhead = overhead_bytes(model)
    if plan.stock is not None:
        found = allocate_preset(tensors, costs, plan.budget_bytes, overhead, plan.stock)
    else:
        smallest = smallest_types(tensors, costs, plan.recipe)
        check_fits(place(tensors, smallest, memory), memory.target.name)
        found = allocate(
            tensors, costs, plan.budget_bytes, overhead, plan.recipe, memory, gap, progress
        )
    total = artifact_bytes(model, found.types)
    placement = place(tensors, found.types, memory)
    check_fits(placement, memory.target.name)
    return Fit(replace(found, total_bytes=total), placement)


def fit_exactly(
    plan: LevelPlan,
    model: Model,
    costs: Costs,
    memory: GPUMemory,
    gap: float = 0.0,
    progress: Progress = SILENT,
) -> Fit:
    """`fit`, with compute buffers that llama.cpp plans for exactly the cut that was found.

    Raises:
        DoesNotFitError: nothing fits.
    """
    assumed = memory
    for _ in range(ATTEMPTS):
        found = fit(plan, model, costs, assumed, gap, progress)
        placement = place_exactly(model, found.allocation.types, memory)
        if placement.fits:
            break
        assumed = assumed.with_more_compute(placement.missing_bytes)
    check_fits(placement, memory.target.name)
    return Fit(found.allocation, placement)


def place_exactly(model: Model, types: Mapping[str, str], memory: GPUMemory) -> Placement:
    """A placement with the compute buffers that llama.cpp plans for its cut; it may not fit.

    Args:
        memory: with the compute buffers of an even cut.
    """
    for _ in range(ATTEMPTS):
        placement = place(model.tensors, types, memory)
        if placement.compute_is_estimated or not placement.fits:
            break
        ((answer,),) = ask_memory([exact_question(placement, model, types)])
        placement = placement.with_compute(answer)
        if placement.fits:
            break
        memory = memory.with_more_compute(placement.missing_bytes)
    return placement


def exact_question(
    placement: Placement, model: Model, types: Mapping[str, str]
) -> Question[ModelHeader]:
    """The question what llama.cpp takes of the GPUs for exactly this placement."""
    devices = Devices("cuda", tuple(gpu.capacity_bytes for gpu in placement.gpus))
    split, runs = placement.tensor_split, (placement.run,)
    return Question(model.quantized(types), devices, split, runs)


NOMINAL_GAP = 0.01
"""Of allocations by nominal costs: they only show sizes, and at this gap take milliseconds."""
SLACK_BYTES = 1 << 16
"""For what a build adds to the metadata once it has an importance matrix."""


def nominal_costs(model: Model, recipe: MeasureRecipe) -> dict[str, dict[str, float]]:
    """Assumed costs, four times less for each bit per weight: enough to plan sizes.

    Used before sensitivity.json is measured. Tensors of the repeating layers are assumed to have an
    importance matrix, except those of a prediction head, which no text runs through.
    """
    trunk = model.geometry.trunk_layers
    at = layers_of(model.tensors, len(model.geometry.layers) + 1)
    costs = {}
    for info in model.tensors:
        if is_quantizable(info):
            has_imatrix = info.name.startswith("blk.") and at[info.name] < trunk
            kinds = admissible(info, has_imatrix, recipe.candidates)
            if kinds:
                costs[info.name] = {kind.name: 4.0**-kind.bits_per_weight for kind in kinds}
    return costs


def plan_levels(
    recipe: Recipe, model: Model, memory: GPUMemory
) -> tuple[list[LevelPlan], list[str]]:
    """The levels that can be built, and a sentence for each that the target rules out.

    A level larger than the target's budget is left out, and so is one whose layers the GPUs
    cannot hold, not even in the smallest types that it allows. A level without a size of its own
    gets the whole budget, but never more than the model has in its largest types.

    Raises:
        DoesNotFitError: no level can be built.
        InputError: a level's minimum or pin is impossible, or its preset needs an importance matrix
            of a prediction head's layers.
    """
    target, costs = memory.target, nominal_costs(model, recipe.measure)
    limit = target_budget(memory, model_host_bytes(model, costs, memory))
    plans, left_out = [], []
    for level in recipe.levels:
        stock, wanted = level_size(level, model)
        if wanted is not None and wanted > limit:
            left_out.append(
                f"level {level.name} ({gib_text(wanted)}) exceeds what {target.name} leaves for "
                f"weights ({gib_text(limit)})"
            )
            continue
        if stock is None:
            if wanted is not None:
                _check_reachable(level, model, costs, wanted)
            placed = place(model.tensors, smallest_types(model.tensors, costs, level), memory)
            form = " in its smallest types"
        else:  # its types are what they are: its own cut decides, and not after hours
            placed, form = place_exactly(model, stock.types, memory), ""
        try:
            check_fits(placed, target.name)
        except DoesNotFitError as error:
            left_out.append(f"level {level.name}{form} {error}")
            continue
        budget = limit
        if stock is None:
            budget = min(wanted or limit, largest_bytes(model, costs, level))
        else:
            _check_prediction(level, model, stock)
        plans.append(LevelPlan(level, budget, stock))
    if not plans:
        smallest = smallest_bytes(model.tensors, costs, LevelRecipe(name="any"))
        way_out = "choose a larger target"
        if smallest > limit:
            way_out = f"{gib_text(smallest - limit)} too much: {way_out}"
        elif not any(level.takes_all for level in recipe.levels):
            way_out = "add a level without a size to the recipe: it uses all that is there"
        raise DoesNotFitError(
            f"nothing fits {target.name}: {'; '.join(left_out)}; its smallest form needs "
            f"{gib_text(smallest)}; {way_out}"
        )
    return plans, left_out


def level_size(level: LevelRecipe, model: Model) -> tuple[StockTypes | None, int | None]:
    """What llama.cpp makes of the model under the level's preset, if it has one; and its bytes.

    No bytes where the level takes all that the target allows.
    """
    if level.preset is not None:  # a build has an importance matrix
        stock = ask_preset(model, level.preset, has_imatrix=True)
        return stock, artifact_bytes(model, stock.types)
    if level.bits_per_weight is not None:
        return None, int(level.bits_per_weight * model.elements / 8)
    return None, level.size_bytes


def _check_prediction(level: LevelRecipe, model: Model, stock: StockTypes) -> None:
    """That a preset gives a prediction head's layers no type that needs an importance matrix."""
    trunk = model.geometry.trunk_layers
    at = layers_of(model.tensors, len(model.geometry.layers) + 1)
    predicting = {name for name, layer in at.items() if name.startswith("blk.") and layer >= trunk}
    check_importance(
        TypeChoice(stock.types, stock),
        at.keys() - predicting,
        f"level {level.name} cannot have one of prediction layers (MTP), which no text runs "
        "through; choose another preset, or drop them with convert: {mtp: drop} in the recipe",
    )


def _check_reachable(level: LevelRecipe, model: Model, costs: Costs, wanted: int) -> None:
    smallest = smallest_bytes(model.tensors, costs, level)
    if wanted >= smallest:
        return
    bits = level.bits_per_weight
    asked = f"{level.size}" if bits is None else f"{bits:g} bits per weight ({gib_text(wanted)})"
    raise DoesNotFitError(
        f"level {level.name} asks for {asked}, but the smallest types that its tensors' rows and "
        f"its rules allow take {8 * smallest / model.elements:.2f} ({gib_text(smallest)}); make "
        "it larger, or lower its minimum and pins"
    )


def largest_bytes(model: Model, costs: Costs, level: LevelRecipe) -> int:
    """A bound of the files' size with every tensor in the largest type that it may get."""
    allowed = allowed_types(model.tensors, costs, level)
    overhead = overhead_bytes(model)
    return overhead + SLACK_BYTES + sum(_largest(info, allowed) for info in model.tensors)


def model_host_bytes(model: Model, costs: Costs, memory: GPUMemory) -> int:
    """The most that weights on no GPU can take."""
    at = layers_of(model.tensors, len(memory.context), memory.unloaded)
    return sum(_largest(info, costs) for info in model.tensors if at[info.name] == HOST)


def _largest(info: TensorInfo, costs: Costs) -> int:
    return max(padded_bytes(info, kind) for kind in (costs.get(info.name) or (info.type_name,)))
