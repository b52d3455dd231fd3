"""sensitivity + Target → allocation.json: one type a tensor, at the least cost that fits.

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
from quantkit.core.units import gib_text
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.presets import StockTypes
from quantkit.plan.allowed_types import Costs, allowed_types, ruled_out, undominated
from quantkit.plan.gpu_memory import GPUMemory, layers_of, padded_bytes
from quantkit.plan.solver.knapsack import Choices, Ints, Limits, fill, relax
from quantkit.plan.solver.layer_cuts import GPUs, solve_on_gpus
from quantkit.plan.solver.search import settle, solve

FILLED_CUTS = 4
"""Of one after the other, each for what the one before was filled with."""
GAP = 1e-5
"""A solution is good enough when no other can cost less by more than this share."""


@dataclass(frozen=True)
class Allocation:
    """A type for every tensor of the artifact.

    Attributes:
        types: tensor name → type name, for all tensors in file order.
        total_bytes: of the whole file: tensors, header and alignment.
        cost: Σ of the costs of the chosen types; None where a preset took one without a cost.
        gap: proven distance of `cost` to the optimum, relative; None for a preset.
        infeasible: tensors whose row length rules out some types → those types.
        stock: the preset that it is, with llama.cpp's fallbacks; None where it was chosen here.
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
    gap: float = GAP,
) -> Allocation:
    """Choose the types that minimise the summed cost within `budget_bytes`, and on the GPUs.

    Afterwards no tensor can get a type that costs less: the next one does not fit into what is
    left of the budget or of its GPU. Of types that cost the same a tensor gets the largest that
    fits into what the others leave.

    Args:
        costs: tensor → type → cost; tensors without an entry keep their type.
        overhead_bytes: header and metadata of the file.
        memory: of the GPUs that must hold the layers; none: only the budget counts.
        gap: how far from the optimum is good enough, relative.

    Raises:
        DoesNotFitError: even the smallest types exceed the budget, or the GPUs; says by how much.
        InputError: a minimum or a pin leaves a tensor without any candidate.
    """
    problem = _Problem.of(tensors, costs, budget_bytes, overhead_bytes, level, memory)
    free, allowed, sizes, room = problem.free, problem.allowed, problem.sizes, problem.room
    types = {info.name: info.type_name for info in tensors}
    proven = 0.0
    if free:
        choices, gpus = problem.choices, problem.gpus
        if gpus is None:
            solution = solve(choices, Limits.of_all(choices, room), gap)
        else:
            solution = solve_on_gpus(choices, gpus, room, gap)
        if solution.chosen is None:
            raise DoesNotFitError(
                "no way to cut the layers between the GPUs holds them, even in their smallest "
                "types; allow smaller types in the recipe, or choose a larger target"
            )
        limits, chosen = _filled(choices, gpus, room, solution.chosen, gap)
        types |= problem.types(chosen)
        types |= _larger_for_nothing(free, types, sizes, allowed, limits, choices, chosen)
        cost = choices.total(chosen)
        proven = max(0.0, 1 - solution.bound / cost) if cost > 0 else 0.0
    return Allocation(
        budget_bytes=budget_bytes,
        total_bytes=overhead_bytes + sum(padded_bytes(i, types[i.name]) for i in tensors),
        cost=math.fsum(allowed[info.name][types[info.name]] for info in free),
        gap=proven,
        types=types,
        infeasible=ruled_out(free),
    )


def fill_gpus(
    tensors: Sequence[TensorInfo],
    costs: Costs,
    budget_bytes: int,
    overhead_bytes: int,
    level: LevelRecipe,
    memory: GPUMemory,
) -> dict[str, str]:
    """Types that fill the budget and the GPUs, found at once and without a proof.

    For questions of size, what is the largest that fits: by the linear relaxation of one way to cut
    the layers, its rounding filled up.

    Raises:
        DoesNotFitError: even the smallest types exceed the budget, or the GPUs.
        InputError: a minimum or a pin leaves a tensor without any candidate.
    """
    problem = _Problem.of(tensors, costs, budget_bytes, overhead_bytes, level, memory)
    types = {info.name: info.type_name for info in tensors}
    if not problem.free:
        return types
    choices, gpus = problem.choices, problem.gpus
    assert gpus is not None
    found: Ints | None = None
    for _ in range(FILLED_CUTS):
        chosen = choices.first[:-1] if found is None else found
        limits = gpus.limits(gpus.counts(choices, chosen), problem.room)
        relaxed = None if limits is None else relax(choices, limits)
        if limits is None or relaxed is None:
            break  # from another cut than the one that it was found on
        better = fill(choices, limits, relaxed.chosen)
        if np.array_equal(better, chosen):
            break
        found = better
    if found is None and not gpus.hold(choices, choices.first[:-1]):
        raise DoesNotFitError("the GPUs do not hold the layers, even in their smallest types")
    return types | problem.types(choices.first[:-1] if found is None else found)


def allocate_preset(
    tensors: Sequence[TensorInfo],
    costs: Costs,
    budget_bytes: int,
    overhead_bytes: int,
    stock: StockTypes,
) -> Allocation:
    """The allocation that a stock preset is: its types, and what they cost where that is known."""
    types = stock.types
    known = [_cost_of(info, types[info.name], costs) for info in tensors]
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


def _cost_of(info: TensorInfo, type_name: str, costs: Costs) -> float | None:
    """Nothing for a tensor that stays as it is; None where the type was not measured."""
    if type_name == info.type_name:
        return 0.0
    return costs.get(info.name, {}).get(type_name)


@dataclass(frozen=True)
class _Problem:
    """What is chosen from, and the limits.

    Attributes:
        free: the tensors that have a choice.
        room: bytes for them all together.
        kinds: of each, its types that no other beats, in the order of `choices`.
    """

    free: Sequence[TensorInfo]
    allowed: Costs
    sizes: Mapping[str, Mapping[str, int]]
    room: int
    kinds: Sequence[Sequence[str]]
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
        kinds = [undominated(sizes[i.name], allowed[i.name]) for i in free]
        choices = Choices.of(
            [
                [(sizes[info.name][t], allowed[info.name][t]) for t in names]
                for info, names in zip(free, kinds, strict=True)
            ]
        )
        gpus = None if memory is None else _gpus(tensors, free, fixed, memory)
        return _Problem(free, allowed, sizes, room, kinds, choices, gpus)

    def types(self, chosen: Ints) -> dict[str, str]:
        """The types of the choices, by tensor."""
        flat = [name for names in self.kinds for name in names]
        return {info.name: flat[at] for info, at in zip(self.free, chosen, strict=True)}


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


def _filled(
    choices: Choices, gpus: GPUs | None, room: int, chosen: Ints, gap: float
) -> tuple[Limits, Ints]:
    """What the gap left open settled, and the rooms filled as the layers will be placed."""
    while True:
        limits = Limits.of_all(choices, room)
        if gpus is not None:
            placed = gpus.limits(gpus.counts(choices, chosen), room)
            assert placed is not None  # the GPUs hold what was chosen
            limits = placed
        better = fill(choices, limits, settle(choices, limits, chosen, gap))
        if np.array_equal(better, chosen):
            return limits, chosen
        chosen = better


def _larger_for_nothing(
    free: Sequence[TensorInfo],
    types: Mapping[str, str],
    sizes: Mapping[str, Mapping[str, int]],
    allowed: Costs,
    limits: Limits,
    choices: Choices,
    chosen: Ints,
) -> dict[str, str]:
    """What is left goes, in file order, to types that cost the same and are larger.

    So a tensor whose cost could not be told from none is not kept small beside unused memory.
    """
    groups, total = limits.left(choices, chosen)
    found = {}
    for info, group in zip(free, limits.group.tolist(), strict=True):
        size, cost = sizes[info.name], allowed[info.name]
        now = types[info.name]
        left = min(int(groups[group]), total)
        fitting = [t for t in cost if cost[t] <= cost[now] and size[t] - size[now] <= left]
        best = max(fitting, key=size.__getitem__)
        if size[best] > size[now]:
            found[info.name] = best
            groups[group] -= size[best] - size[now]
            total -= size[best] - size[now]
    return found
