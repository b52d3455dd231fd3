"""Solves the multiple-choice knapsack to a proven gap, by HiGHS on what the relaxation leaves open.

The relaxation gives prices and a bound. A choice whose reduced cost exceeds the distance from that
bound to a known solution is in no better one (Dembo and Hammer 1980), so HiGHS gets only the rest,
in units of that distance: the smallest costs count however small they are beside the largest.
Every solution is checked in integers.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from quantkit.plan.solver.knapsack import (
    Choices,
    Floats,
    Ints,
    Limits,
    Relaxation,
    Solution,
    fill,
    relax,
)

NODES = 5_000
"""Of HiGHS's search; a limit of nodes and not of seconds, so that a result can be repeated."""
FIRST_REACH, FURTHER = 1 / 64, 8
"""HiGHS first looks only so near to the bound, as a share of the distance to what is known."""
ROUNDING = 1e-13
"""Of sums of costs in F64, relative: differences below it are none."""
_DONE, _NODES_SPENT, _INFEASIBLE = 0, 1, 2  # scipy.optimize.milp's status


def solve(choices: Choices, limits: Limits, gap: float, known: float = math.inf) -> Solution:
    """The least cost within the limits.

    Args:
        gap: how far from the bound a solution may stay, relative to its cost.
        known: the cost of a solution that is known already; only a better one is looked for.
    """
    relaxation = relax(choices, limits)
    if relaxation is None:
        return Solution(None, math.inf, math.inf)
    chosen = fill(choices, limits, relaxation.chosen)
    best = min(choices.total(chosen), known)
    if relaxation.bound > best * (1 - gap) and best == known:
        return Solution(None, math.inf, relaxation.bound)
    if len(limits.groups) > 1 and limits.total >= limits.most(choices):
        found = _solve_apart(choices, limits, gap * best)
    else:
        found = _solve_together(choices, limits, relaxation, gap * best, known)
    return found if found.cost < known else replace(found, chosen=None, cost=math.inf)


def settle(choices: Choices, limits: Limits, chosen: Ints, gap: float) -> Ints:
    """Solve once more for the items whose costs all lie within the gap, and so on.

    A gap relative to the sum leaves them open, however much they differ among themselves.
    """
    chosen = chosen.copy()
    lowest = choices.cost[choices.first[1:] - 1]
    span = choices.cost[choices.first[:-1]] - lowest
    items = np.flatnonzero(span > 0)
    within = gap * choices.total(chosen)
    while len(items := items[span[items] <= within]):
        own, at = choices.part(items)
        above = Choices.of(own.pairs(lowest[items]))
        left, total = limits.left(choices, chosen)
        sizes = choices.size[chosen[items]]
        np.add.at(left, limits.group[items], sizes)
        inside = Limits(limits.group[items], tuple(left.tolist()), total + int(sizes.sum()))
        known = math.fsum(choices.cost[chosen[items]] - lowest[items])
        found = solve(above, inside, gap, known)
        if found.chosen is not None:
            chosen[items] = at[found.chosen]
        within = gap * min(known, found.cost)
    return chosen


def _solve_apart(choices: Choices, limits: Limits, gap: float) -> Solution:
    """Groups one by one, where the total cannot bind; `gap` in units of cost, as below."""
    chosen = np.zeros(len(choices.first) - 1, np.int64)
    costs, bounds = [], []
    groups = np.unique(limits.group)
    for group in groups:
        inside = np.flatnonzero(limits.group == group)
        own, at = choices.part(inside)
        alone = Limits.of_all(own, limits.groups[group])
        relaxation = relax(own, alone)
        assert relaxation is not None  # that of all groups has a solution
        found = _solve_together(own, alone, relaxation, gap / len(groups), math.inf)
        assert found.chosen is not None
        chosen[inside] = at[found.chosen]
        costs.append(found.cost)
        bounds.append(found.bound)
    return Solution(chosen, math.fsum(costs), math.fsum(bounds))


def _solve_together(
    choices: Choices, limits: Limits, relaxation: Relaxation, gap: float, known: float
) -> Solution:
    """Further and further from the relaxation's bound, until a solution or a proof is found."""
    bound = relaxation.bound
    chosen = fill(choices, limits, relaxation.chosen)
    cost = choices.total(chosen)
    reach = FIRST_REACH * (min(cost, known) - bound)
    while (best := min(cost, known)) - bound > max(gap, ROUNDING * best):
        reach = min(reach, best - relaxation.bound)
        found, reached = _search(choices, limits, relaxation, reach, gap)
        bound = max(bound, reached)
        if found is not None and choices.total(found) < cost:
            chosen = fill(choices, limits, found)
            cost = choices.total(chosen)
        if reach >= best - relaxation.bound:
            break
        reach *= FURTHER
    return Solution(chosen, cost, min(bound, cost))


def _search(
    choices: Choices, limits: Limits, relaxation: Relaxation, reach: float, gap: float
) -> tuple[Ints | None, float]:
    """A solution that costs at most `reach` above the relaxation's bound, by HiGHS.

    Only choices with a reduced cost within `reach` can be part of one. Everything is scaled by
    it: a limit with a price gets a variable for what is left of it, which costs that price.

    Args:
        gap: how far from the optimum is good enough.

    Returns:
        The best solution that it met, one beyond `reach` perhaps, and a bound of all solutions.
    """
    open_ = np.flatnonzero(relaxation.reduced <= reach)
    item = choices.item[open_]
    base = np.zeros(len(choices.first) - 1, np.int64)
    base[item[::-1]] = open_[::-1]  # each item's smallest open choice
    room, total_room = limits.left(choices, base)
    if total_room < 0 or (room < 0).any():
        return None, relaxation.bound + reach
    above = choices.size[open_] - choices.size[base[item]]
    group = limits.group[item]
    own = relaxation.price - relaxation.total_price
    rows = [_Row(above * (group == g), int(room[g]), own[g]) for g in range(len(room))]
    rows.append(_Row(above, total_room, relaxation.total_price))
    rows = [row for row in rows if row.binds(item)]
    reduced = relaxation.reduced[open_] / reach
    picked, reached = _milp(item, reduced, rows, reach, gap)
    while picked is not None and any(row.overshoot(picked) for row in rows):
        # HiGHS tolerates 1e-6 of a unit; ask again without what it overshot
        rows = [replace(row, room=row.room - row.overshoot(picked)) for row in rows]
        picked, _ = _milp(item, reduced, rows, reach, gap)
    bound = relaxation.bound + reach * min(1.0, reached)
    return None if picked is None else open_[picked], bound


@dataclass(frozen=True)
class _Row:
    """A limit in HiGHS's problem.

    Attributes:
        sizes: of the open choices, above each item's smallest; 0 for items of other groups.
        room: what is left when every item has its smallest.
        price: of a unit of size.
    """

    sizes: Ints
    room: int
    price: float

    def binds(self, item: Ints) -> bool:
        """Whether some choices would exceed it, or what is left of it costs something."""
        most = np.zeros(int(item[-1]) + 1, np.int64)
        np.maximum.at(most, item, self.sizes)
        return self.price > 0 or int(most.sum()) > self.room

    def overshoot(self, picked: Ints) -> int:
        return max(0, int(self.sizes[picked].sum()) - self.room)


def _milp(
    item: Ints, reduced: Floats, rows: Sequence[_Row], reach: float, gap: float
) -> tuple[Ints | None, float]:
    """One choice an item at the least reduced cost and price of what is left, both in `reach`.

    Returns:
        The choices' positions, None when there are none, and a bound in units of `reach`.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import csr_array, hstack, vstack

    count, priced = len(item), [row.price > 0 for row in rows]
    unit = np.array([reach / r.price if r.price > 0 else max(r.room, 1) for r in rows])
    each = csr_array((np.ones(count), (item, np.arange(count))))
    sizes = csr_array(np.array([row.sizes / u for row, u in zip(rows, unit, strict=True)]))
    left = csr_array(np.eye(len(rows))[:, priced])
    matrix = vstack(
        [hstack([each, csr_array((each.shape[0], left.shape[1]))]), hstack([sizes, left])]
    )
    room = np.array([row.room for row in rows]) / unit
    limits = LinearConstraint(
        matrix,
        np.concatenate([np.ones(each.shape[0]), np.where(priced, room, -np.inf)]),
        np.concatenate([np.ones(each.shape[0]), room]),
    )
    for presolve in (True, False):
        with _silenced():
            result = milp(
                c=np.concatenate([reduced, np.ones(left.shape[1])]),
                integrality=np.concatenate([np.ones(count), np.zeros(left.shape[1])]),
                bounds=Bounds(0, np.concatenate([np.ones(count), np.full(left.shape[1], np.inf)])),
                constraints=limits,
                options={
                    "mip_rel_gap": min(1.0, gap / reach),
                    "node_limit": NODES,
                    "presolve": presolve,
                },
            )
        if result.status == _INFEASIBLE:
            return None, math.inf
        if result.status in (_DONE, _NODES_SPENT):
            picked = None if result.x is None else np.flatnonzero(result.x[:count] > 0.5)
            return picked, float(result.mip_dual_bound or 0.0)
    return None, 0.0  # HiGHS found its own solution infeasible, by a hair: it has proven nothing


@contextmanager
def _silenced() -> Iterator[None]:
    """Away with what the C library prints: HiGHS has a line that no option turns off.

    It is in highs/mip/HighsMipSolverData.cpp, and would stand in the middle of `--json`.
    """
    library = ctypes.CDLL(None)
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        library.fflush(None)
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
