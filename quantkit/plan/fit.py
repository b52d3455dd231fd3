"""Levels on GPUs: allocation and placement that hold together, with llama.cpp's own buffers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from quantkit.config.target import Target
from quantkit.llamacpp.memory_plan import Shape, ask_memory
from quantkit.plan.allocate import GAP, allocate, allocate_preset
from quantkit.plan.allowed_types import Costs, smallest_types
from quantkit.plan.gpu_memory import GPUMemory
from quantkit.plan.llama_memory import asked_memories, shape_of, stand_ins, use_of
from quantkit.plan.model import Fitted, LevelPlan, PlannedModel
from quantkit.plan.place import Placement, check_fits, place
from quantkit.quantize.quantize import artifact_bytes, overhead_bytes

ATTEMPTS = 8
"""At a cut whose compute buffers are no larger than was thought."""


def memory_of(model: PlannedModel, target: Target) -> tuple[GPUMemory, str | None]:
    """The target's memory for the model as llama.cpp plans it, or why it is only estimated.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    (memory,), why = asked_memories(model.metadata, model.tensors, model.geometry, [target])
    return memory, why


def target_budget(target: Target, memory: GPUMemory, host_bytes: int = 0) -> int:
    """Bytes of weights that the target allows: its own number, but no more than its GPUs leave.

    Args:
        host_bytes: of weights that lie on no GPU.
    """
    left = memory.weights_room + host_bytes
    fixed = target.weight_budget_bytes
    return left if fixed is None else min(fixed, left)


def fit(
    plan: LevelPlan,
    model: PlannedModel,
    costs: Costs,
    target: Target,
    memory: GPUMemory,
    gap: float = GAP,
) -> Fitted:
    """Allocate such that the level's budget and every GPU are kept, and place it.

    Args:
        gap: how far from the optimum is good enough, relative.

    Raises:
        DoesNotFitError: not even the smallest types fit the budget or the GPUs.
    """
    tensors = model.tensors
    overhead = overhead_bytes(model.stem, model.metadata, tensors)
    if plan.stock is not None:
        found = allocate_preset(tensors, costs, plan.budget_bytes, overhead, plan.stock)
    else:
        smallest = smallest_types(tensors, costs, plan.recipe)
        check_fits(place(tensors, smallest, memory, target), target)
        found = allocate(tensors, costs, plan.budget_bytes, overhead, plan.recipe, memory, gap)
    total = artifact_bytes(model.stem, model.metadata, tensors, found.types)
    placement = place(tensors, found.types, memory, target)
    check_fits(placement, target)
    return Fitted(dataclasses.replace(found, total_bytes=total), placement)


def fit_exactly(
    plan: LevelPlan,
    model: PlannedModel,
    costs: Costs,
    target: Target,
    memory: GPUMemory,
    gap: float = GAP,
) -> Fitted:
    """`fit`, with compute buffers that llama.cpp plans for exactly the cut that was found.

    Raises:
        DoesNotFitError: nothing fits.
        InputError: llama.cpp refuses the model.
    """
    assumed = memory
    for _ in range(ATTEMPTS):
        found = fit(plan, model, costs, target, assumed, gap)
        placement = place_exactly(model, found.allocation.types, target, memory)
        if placement.fits:
            break
        assumed = assumed.with_more_compute(placement.missing_bytes)
    check_fits(placement, target)
    return Fitted(found.allocation, placement)


def place_exactly(
    model: PlannedModel, types: Mapping[str, str], target: Target, memory: GPUMemory
) -> Placement:
    """A placement with the compute buffers that llama.cpp plans for its cut; it may not fit.

    Args:
        memory: with the compute buffers of an even cut.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    for _ in range(ATTEMPTS):
        placement = place(model.tensors, types, memory, target)
        if placement.estimated or not placement.fits:
            break
        ((answer,),) = ask_memory([exact_shape(placement, model, types, target)])
        placement = placement.with_compute(answer)
        if placement.fits:
            break
        memory = memory.with_more_compute(placement.missing_bytes)
    return placement


def exact_shape(
    placement: Placement, model: PlannedModel, types: Mapping[str, str], target: Target
) -> Shape:
    """The question what llama.cpp takes of the target's GPUs for exactly this placement."""
    use, devices = use_of(model.geometry, target), stand_ins(target)
    return shape_of(model.metadata, model.tensors, types, use, devices, placement.tensor_split)
