"""sensitivity → allocation.json: one type a tensor, the least summed error within the budget.

A multiple-choice knapsack: exactly one type for every quantizable tensor, total bytes at most the
budget. It is solved as an integer program by HiGHS and not by a Lagrangian, which leaves a hole in
the budget wherever one tensor is large.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.errors import DoesNotFitError, EnvironmentFault, InputError
from quantkit.quant_types import BY_NAME
from quantkit.sizes import gib_text
from quantkit.values import TensorInfo

RELATIVE_GAP = 1e-6
SOLVER_SECONDS = 600.0
INFEASIBLE = 2  # scipy.optimize.milp's status


@dataclass(frozen=True)
class Allocation:
    """A type for every tensor of the artifact.

    Attributes:
        types: tensor name → type name, for all tensors in file order.
        total_bytes: of the whole file: tensors, header and alignment.
        summed_error: Σ of the relative errors of the chosen types.
        gap: proven distance of `summed_error` to the optimum, relative; 0 when solved exactly.
        infeasible: tensors whose row length rules out some candidates → the types ruled out.
    """

    budget_bytes: int
    total_bytes: int
    summed_error: float
    gap: float
    types: Mapping[str, str]
    infeasible: Mapping[str, tuple[str, ...]]


def allocate(
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    budget_bytes: int,
    overhead_bytes: int,
    minimum: Mapping[str, str],
) -> Allocation:
    """Choose the types that minimise the summed error within `budget_bytes`.

    Args:
        errors: tensor → type → relative error; tensors without an entry keep their type.
        overhead_bytes: header and metadata of the file.
        minimum: regular expression → smallest type (by bits a weight) for the tensors it matches.

    Raises:
        DoesNotFitError: even the smallest types exceed the budget; says by how much.
        InputError: a minimum leaves a tensor without any candidate.
    """
    fixed = [info for info in tensors if info.name not in errors]
    free = [info for info in tensors if info.name in errors]
    options = {info.name: _options(info, errors[info.name], minimum) for info in free}
    fixed_bytes = overhead_bytes + sum(_padded(info, info.type_name) for info in fixed)
    sizes = {info.name: {name: _padded(info, name) for name in options[info.name]} for info in free}
    smallest = fixed_bytes + sum(min(choice.values()) for choice in sizes.values())
    if smallest > budget_bytes:
        raise DoesNotFitError(
            f"the budget of {gib_text(budget_bytes)} is too small by "
            f"{gib_text(smallest - budget_bytes)}: the smallest allowed types need "
            f"{gib_text(smallest)}; allow smaller types in the recipe, or choose a larger target"
        )
    chosen, gap = _solve(free, options, sizes, budget_bytes - fixed_bytes)
    types = {info.name: chosen.get(info.name, info.type_name) for info in tensors}
    return Allocation(
        budget_bytes=budget_bytes,
        total_bytes=fixed_bytes + sum(sizes[name][kind] for name, kind in chosen.items()),
        summed_error=sum(options[name][kind] for name, kind in chosen.items()),
        gap=gap,
        types=types,
        infeasible=_ruled_out(free),
    )


def smallest_bytes(
    tensors: Sequence[TensorInfo],
    errors: Mapping[str, Mapping[str, float]],
    minimum: Mapping[str, str],
) -> int:
    """Bytes of all tensors in the smallest types that `allocate` may give them, header aside."""
    return sum(
        min(_padded(i, t) for t in _options(i, errors[i.name], minimum))
        if i.name in errors
        else _padded(i, i.type_name)
        for i in tensors
    )


def _padded(info: TensorInfo, type_name: str, alignment: int = 32) -> int:
    return -(-BY_NAME[type_name].size_bytes(info.elements) // alignment) * alignment


def _options(
    info: TensorInfo, errors: Mapping[str, float], minimum: Mapping[str, str]
) -> dict[str, float]:
    """Types this tensor may get, with their errors; dominated ones (larger and worse) dropped."""
    floors = [BY_NAME[t].bits_per_weight for p, t in minimum.items() if re.search(p, info.name)]
    floor = max(floors, default=0.0)
    allowed = {t: e for t, e in errors.items() if BY_NAME[t].bits_per_weight >= floor}
    if not allowed:
        raise InputError(
            f"no candidate type for {info.name} (row of {info.row_elements}) has at least "
            f"{floor:g} bits a weight; lower its minimum or add candidates to the recipe"
        )
    best = np.inf
    kept = {}
    for name in sorted(allowed, key=lambda t: (BY_NAME[t].bits_per_weight, allowed[t])):
        if allowed[name] < best:
            kept[name] = best = allowed[name]
    return kept


def _ruled_out(free: Sequence[TensorInfo]) -> dict[str, tuple[str, ...]]:
    found = {}
    for info in free:
        misfits = [
            kind.name
            for kind in BY_NAME.values()
            if kind.is_quantized and not kind.fits_row(info.row_elements)
        ]
        if misfits:
            found[info.name] = tuple(misfits)
    return found


def _solve(
    free: Sequence[TensorInfo],
    options: Mapping[str, Mapping[str, float]],
    sizes: Mapping[str, Mapping[str, int]],
    capacity: int,
) -> tuple[dict[str, str], float]:
    """The knapsack itself. Returns tensor → type, and the proven relative gap."""
    if not free:
        return {}, 0.0
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array

    names = [info.name for info in free]
    pairs = [(i, kind) for i, name in enumerate(names) for kind in options[name]]
    cost = np.array([options[names[i]][kind] for i, kind in pairs])
    size = np.array([sizes[names[i]][kind] for i, kind in pairs], np.float64)
    row = np.array([i for i, _ in pairs])
    one_each = csr_array((np.ones(len(pairs)), (row, np.arange(len(pairs)))))
    limit = capacity
    while True:
        result = milp(
            c=cost / max(cost.max(), 1e-300),
            integrality=np.ones(len(pairs), np.int64),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(
                    size[None, :] / max(capacity, 1), -np.inf, limit / max(capacity, 1)
                ),
            ],
            options={"mip_rel_gap": RELATIVE_GAP, "time_limit": SOLVER_SECONDS},
        )
        if result.x is None and result.status != INFEASIBLE:
            raise EnvironmentFault(f"HiGHS found no allocation: {result.message}; run it again")
        if result.x is None:  # the limit was tightened below the smallest choice, which fits
            return {name: min(size, key=size.__getitem__) for name, size in sizes.items()}, 0.0
        chosen = {names[i]: kind for (i, kind), x in zip(pairs, result.x, strict=True) if x > 0.5}
        used = sum(sizes[name][kind] for name, kind in chosen.items())
        if used <= capacity:
            return chosen, float(result.mip_gap or 0.0)
        # HiGHS tolerates 1e-6 of infeasibility; ask again for what it overshot
        limit -= used - capacity
