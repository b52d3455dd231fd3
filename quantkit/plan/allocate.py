"""Sensitivity and target → allocation.json: one type for each tensor, at the least cost that fits.

Exactly one type for every quantizable tensor, and the file within the budget: a multiple-choice
knapsack. Where GPUs are given, every GPU must hold its layers too, wherever they are cut.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.config.levels import LevelRecipe
from quantkit.core.errors import DoesNotFitError
from quantkit.core.progress import SILENT, Progress
from quantkit.core.units import gib_text
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.presets import StockTypes
from quantkit.plan.allowed_types import Costs, allowed_types, ruled_out, undominated
from quantkit.plan.gpu_memory import GPUMemory, layers_of, padded_bytes
from quantkit.plan.solver import (
    SEARCH,
    WORK,
    Choices,
    GPUs,
    Ints,
    Limits,
    Solution,
    Work,
    fill,
    fill_gpus,
    solve,
    solve_on_gpus,
)


@dataclass(frozen=True)
class Allocation:
    """A type for every tensor of the artifact.

    Attributes:
        types: tensor name → type name, for all tensors in file order.
        total_bytes: of the whole file: tensors, header and alignment.
        cost: sum of the costs of the chosen types; None where a preset uses an unmeasured type.
        gap: proven distance of `cost` to the optimum, relative; None for a preset.
        infeasible: tensors whose row length rules out some types → those types.
        stock: the llama.cpp preset with its fallbacks; None where the types were chosen here.
    """

    budget_bytes: int
    total_bytes: int
    cost: float | None
    gap: float | None
    types: Mapping[str, str]
    infeasible: Mapping[str, tuple[str, ...]]
    stock: StockTypes | None = None


def allocate(
    tensors: Sequence[TensorInfo],
    costs: Costs,
    budget_bytes: int,
    overhead_bytes: int,
    level: LevelRecipe,
    memory: GPUMemory | None = None,
    gap: float = 0.0,
    progress: Progress = SILENT,
) -> Allocation:
    """Choose the types that minimise the summed cost within `budget_bytes`, and on the GPUs.

    Afterwards no tensor can get a type that costs less: the next one does not fit into what is
    left of the budget or of its GPU. Of types that cost the same a tensor gets the largest that
    fits into what the others leave.

    Args:
        costs: tensor → type → cost; tensors without an entry keep their type.
        overhead_bytes: header and metadata of the file.
        memory: of the GPUs that must hold the layers; none: only the budget counts.
        gap: good enough is what no other choice undercuts by more than this share.
        progress: of the work that the search may do; most do less.

    Raises:
        DoesNotFitError: even the smallest types exceed the budget, or the GPUs; says by how much.
        InputError: a minimum or a pin leaves a tensor without any candidate.
    """
    problem = _Problem.of(tensors, costs, budget_bytes, overhead_bytes, level, memory)
    types = {info.name: info.type_name for info in tensors}
    proven = 0.0
    if problem.free:
        choices, gpus, room = problem.choices, problem.gpus, problem.room
        if gpus is None:
            progress.start(WORK, *SEARCH)
            solution = solve(choices, Limits.of_all(choices, room), gap, Work(WORK, progress))
        else:
            solution = solve_on_gpus(choices, gpus, room, gap, progress)
        limits, chosen = problem.filled(_found(solution))
        types |= problem.larger_for_nothing(limits, chosen)
        cost = choices.total(chosen)
        proven = max(0.0, 1 - _found(solution).bound / cost) if cost > 0 else 0.0
    return Allocation(
        budget_bytes=budget_bytes,
        total_bytes=overhead_bytes + sum(padded_bytes(i, types[i.name]) for i in tensors),
        cost=math.fsum(problem.allowed[info.name][types[info.name]] for info in problem.free),
        gap=proven,
        types=types,
        infeasible=ruled_out(problem.free),
    )


def fill_types(
    tensors: Sequence[TensorInfo],
    costs: Costs,
    budget_bytes: int,
    overhead_bytes: int,
    level: LevelRecipe,
    memory: GPUMemory,
) -> dict[str, str]:
    """Types that fill the budget and the GPUs, found at once and without a proof.

    For questions of size: what is the largest that fits.

    Raises:
        DoesNotFitError: even the smallest types exceed the budget, or the GPUs.
        InputError: a minimum or a pin leaves a tensor without any candidate.
    """
    problem = _Problem.of(tensors, costs, budget_bytes, overhead_bytes, level, memory)
    types = {info.name: info.type_name for info in tensors}
    if problem.gpus is not None and problem.free:
        filled = fill_gpus(problem.choices, problem.gpus, problem.room)
        types |= problem.types(_found(filled).chosen)
    return types


def _found(solution: Solution | None) -> Solution:
    if solution is None:
        raise DoesNotFitError(
            "no way to cut the layers between the GPUs holds them, even in their smallest types; "
            "allow smaller types in the recipe, or choose a larger target"
        )
    return solution


def allocate_preset(
    tensors: Sequence[TensorInfo],
    costs: Costs,
    budget_bytes: int,
    overhead_bytes: int,
    stock: StockTypes,
) -> Allocation:
    """The allocation that a stock preset is: its types, and what they cost where that is known."""
    types = stock.types
    changed = [info.name for info in tensors if types[info.name] != info.type_name]
    known = [costs.get(name, {}).get(types[name]) for name in changed]
    every = [cost for cost in known if cost is not None]
    return Allocation(
        budget_bytes=budget_bytes,
        total_bytes=overhead_bytes + sum(padded_bytes(i, types[i.name]) for i in tensors),
        cost=math.fsum(every) if len(every) == len(known) else None,
        gap=None,
        types={info.name: types[info.name] for info in tensors},
        infeasible=ruled_out([info for info in tensors if info.name in costs]),
        stock=stock,
    )


@dataclass(frozen=True)
class _Problem:
    """What is chosen from, and the limits.

    Attributes:
        free: the tensors that have a choice.
        room: bytes for them all together.
        kinds: the type of each of `choices`.
    """

    free: Sequence[TensorInfo]
    allowed: Costs
    sizes: Mapping[str, Mapping[str, int]]
    room: int
    kinds: Sequence[str]
    choices: Choices
    gpus: GPUs | None

    @staticmethod
    def of(
        tensors: Sequence[TensorInfo],
        costs: Costs,
        budget_bytes: int,
        overhead_bytes: int,
        level: LevelRecipe,
        memory: GPUMemory | None,
    ) -> _Problem:
        free = [info for info in tensors if info.name in costs]
        allowed = allowed_types(tensors, costs, level)
        sizes = {i.name: {t: padded_bytes(i, t) for t in allowed[i.name]} for i in free}
        fixed = {i.name: padded_bytes(i, i.type_name) for i in tensors if i.name not in costs}
        room = budget_bytes - overhead_bytes - sum(fixed.values())
        smallest = sum(min(choice.values()) for choice in sizes.values())
        if smallest > room:
            raise DoesNotFitError(
                f"the budget of {gib_text(budget_bytes)} is too small by "
                f"{gib_text(smallest - room)}: the smallest allowed types need "
                f"{gib_text(budget_bytes + smallest - room)}; allow smaller types in the recipe, "
                "or choose a larger target"
            )
        kinds = {name: undominated(sizes[name], allowed[name]) for name in sizes}
        choices = Choices.of(
            [[(sizes[n][t], allowed[n][t]) for t in names] for n, names in kinds.items()]
        )
        flat = [kind for names in kinds.values() for kind in names]
        gpus = None if memory is None else _gpus(tensors, free, fixed, memory)
        return _Problem(free, allowed, sizes, room, flat, choices, gpus)

    def types(self, chosen: Ints) -> dict[str, str]:
        """The types of the choices, by tensor."""
        return {i.name: self.kinds[at] for i, at in zip(self.free, chosen, strict=True)}

    def filled(self, solution: Solution) -> tuple[Limits, Ints]:
        """The limits as the layers will be placed, and the choices that fill them."""
        chosen = solution.chosen
        while True:
            limits = Limits.of_all(self.choices, self.room)
            if self.gpus is not None:
                limits = self.gpus.cut_for(self.choices, chosen, self.room)
            better = fill(self.choices, limits, chosen)
            if np.array_equal(better, chosen):
                return limits, chosen
            chosen = better  # every round some items cost less, so this ends

    def larger_for_nothing(self, limits: Limits, chosen: Ints) -> dict[str, str]:
        """The types of the choices; what is left goes, in file order, to larger ones that cost
        the same.

        So a tensor whose cost could not be told from none is not kept small beside unused memory.
        """
        types = self.types(chosen)
        groups, total = limits.left(self.choices, chosen)
        for info, group in zip(self.free, limits.group.tolist(), strict=True):
            size, cost, now = self.sizes[info.name], self.allowed[info.name], types[info.name]
            left = size[now] + min(int(groups[group]), total)
            best = max(
                (t for t in cost if cost[t] <= cost[now] and size[t] <= left), key=size.__getitem__
            )
            if size[best] > size[now]:
                types[info.name] = best
                groups[group] -= size[best] - size[now]
                total -= size[best] - size[now]
        return types


def _gpus(
    tensors: Sequence[TensorInfo],
    free: Sequence[TensorInfo],
    fixed: Mapping[str, int],
    memory: GPUMemory,
) -> GPUs:
    """The GPUs with the layers of the free tensors, and all else that the layers need."""
    at = layers_of(tensors, len(memory.context), memory.unloaded)
    kept = list(memory.kept)
    for name, size in fixed.items():
        if at[name] >= 0:
            kept[at[name]] += size
    layer = np.array([at[info.name] for info in free], np.int64)
    return GPUs(layer, tuple(kept), memory.rooms)
