"""Levels on GPUs: allocation and placement that hold together, with llama.cpp's own buffers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from quantkit.config.levels import LevelRecipe
from quantkit.llamacpp.device_sets import Devices
from quantkit.llamacpp.memory_plan import Question, ask_memory
from quantkit.llamacpp.presets import StockTypes
from quantkit.models.model import Model
from quantkit.plan.allocate import Allocation, allocate, allocate_preset
from quantkit.plan.allowed_types import Costs, smallest_types
from quantkit.plan.gpu_memory import GPUMemory
from quantkit.plan.place import place
from quantkit.plan.placement import Placement, check_fits
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
    """An allocation and the placement that holds it."""

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


def fit(
    plan: LevelPlan,
    model: Model,
    costs: Costs,
    memory: GPUMemory,
    gap: float = 0.0,
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
        found = allocate(tensors, costs, plan.budget_bytes, overhead, plan.recipe, memory, gap)
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
) -> Fit:
    """`fit`, with compute buffers that llama.cpp plans for exactly the cut that was found.

    Raises:
        DoesNotFitError: nothing fits.
        InputError: llama.cpp refuses the model.
    """
    assumed = memory
    for _ in range(ATTEMPTS):
        found = fit(plan, model, costs, assumed, gap)
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

    Raises:
        InputError: llama.cpp refuses the model.
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


def exact_question(placement: Placement, model: Model, types: Mapping[str, str]) -> Question:
    """The question what llama.cpp takes of the GPUs for exactly this placement."""
    devices = Devices("cuda", tuple(gpu.capacity_bytes for gpu in placement.gpus))
    split, runs = placement.tensor_split, (placement.run,)
    return Question(model.quantized(types), devices, split, runs)
