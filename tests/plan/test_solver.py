"""The solver: against everything tried and against SciPy, bounds that hold, work that ends."""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knapsack_problems import (
    are_inside,
    by_scipy,
    cuts,
    every,
    gpu_problems,
    items,
    least,
    problems,
)

from quantkit.core.progress import Progress
from quantkit.plan import solver
from quantkit.plan.solver import (
    UNLIMITED,
    WORK,
    Choices,
    GPUs,
    Limits,
    Solution,
    Work,
    fill,
    fill_gpus,
    solve,
    solve_on_gpus,
)

ROUNDING = 1e-12
SHORT = {"PAIRS": 16, "KEPT": 3, "MOST_CUTS": 2, "PRICES": 3, "WORK": 4000}
"""Limits of the search that even small problems meet."""


def check(found: Solution, choices: Choices, limits: Limits) -> None:
    """That a solution is one, costs what it says, and that its bound is not above it."""
    assert choices.item[found.chosen].tolist() == list(range(len(choices.smallest)))
    assert are_inside(choices, limits, found.chosen[None]).all()
    assert found.cost == choices.total(found.chosen)
    assert found.bound <= found.cost


@given(problems(), st.sampled_from([0.0, 1e-5, 0.05, 0.3]), st.sampled_from([WORK, 3000, 0]))
@settings(max_examples=150)
def test_the_least_cost_is_found_within_the_gap(
    problem: tuple[Choices, Limits], gap: float, work: int
) -> None:
    choices, limits = problem
    best, found = least(choices, limits), solve(choices, limits, gap, Work(work))
    assert (found is None) == math.isinf(best)
    if found is not None:
        check(found, choices, limits)
        assert found.bound <= best * (1 + ROUNDING)
        if work == WORK:
            assert found.cost - found.bound <= (gap + ROUNDING) * found.cost


@given(gpu_problems(), st.booleans())
@settings(max_examples=150)
def test_the_least_cost_of_all_cuts_is_found(
    problem: tuple[Choices, GPUs, int], short: bool
) -> None:
    choices, gpus, total = problem
    ways = list(cuts(gpus, total))
    best = min(least(choices, limits) for limits in ways)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SHORT.items() if short else ():
            patch.setattr(solver, name, value)
        found, filled = solve_on_gpus(choices, gpus, total), fill_gpus(choices, gpus, total)
    assert (found is None) == (filled is None) == math.isinf(best)
    if found is not None and filled is not None:
        for one in (found, filled):
            holding = [w for w in ways if are_inside(choices, w, one.chosen[None]).all()]
            check(one, choices, holding[0])
        assert found.bound <= best * (1 + ROUNDING)
        assert found.cost <= filled.cost
        if not short:
            assert found.cost <= best * (1 + 1e-8)
            assert found.bound >= best * (1 - 1e-8)


def ladder(seed: int, count: int) -> list[list[tuple[int, float]]]:
    """Items like tensors: costs that fall fourfold a step, of very different heights."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sizes = np.cumsum(random.integers(1, 9, 4))
        costs = random.lognormal(0, 2) * 4.0 ** -np.arange(4) * random.lognormal(0, 0.1, 4)
        found.append(list(zip(sizes.tolist(), np.sort(costs)[::-1].tolist(), strict=True)))
    return found


@pytest.mark.parametrize(
    ("groups", "total"),
    [
        ((500,), UNLIMITED),
        ((350,), UNLIMITED),
        ((UNLIMITED,), 350),
        ((130, 190, 160), UNLIMITED),
        ((130, 190, 160), 480),  # the total is what the groups allow
        ((130, 190, 160), 470),
        ((130, UNLIMITED), 410),
        ((60,) * 8, 470),
    ],
)
def test_many_items_cost_what_scipy_finds(groups: tuple[int, ...], total: int) -> None:
    choices = Choices.of(ladder(len(groups), 40))
    limits = Limits(np.arange(40) % len(groups), groups, total)
    best, found = by_scipy(choices, limits), solve(choices, limits)
    filled = solve(choices, limits, work=Work(0))
    assert found is not None
    assert filled is not None
    check(found, choices, limits)
    assert found.cost == pytest.approx(best, rel=1e-6)
    assert found.bound == pytest.approx(best, rel=1e-6)
    assert found.cost <= filled.cost


@pytest.mark.parametrize("total", [UNLIMITED, 400])
def test_many_layers_cost_what_scipy_finds_for_the_best_cut(total: int) -> None:
    choices = Choices.of(ladder(9, 36))
    gpus = GPUs(np.arange(36) // 4 - (np.arange(36) == 20) * 6, (3,) * 9, (150, 220, 140))
    best = min(by_scipy(choices, limits) for limits in cuts(gpus, total))
    found = solve_on_gpus(choices, gpus, total)
    assert found is not None
    assert found.cost == pytest.approx(best, rel=1e-6)
    assert found.bound == pytest.approx(best, rel=1e-6)
    again = solve_on_gpus(choices, gpus, total)
    assert again is not None
    assert np.array_equal(again.chosen, found.chosen)


@given(problems(), st.integers(0, 1 << 20))
@settings(max_examples=40)
def test_after_filling_no_item_alone_can_be_improved(
    problem: tuple[Choices, Limits], number: int
) -> None:
    choices, limits = problem
    ways = every(choices)
    inside = ways[are_inside(choices, limits, ways)]
    if not len(inside):
        return
    start = inside[number % len(inside)]
    before = start.copy()
    filled = fill(choices, limits, start)
    assert np.array_equal(start, before)
    assert are_inside(choices, limits, filled[None]).all()
    assert (choices.cost[filled] <= choices.cost[start]).all()
    changed = np.tile(filled, (len(choices.item), 1))
    changed[np.arange(len(changed)), choices.item] = np.arange(len(changed))
    better = choices.cost < choices.cost[filled][choices.item]
    assert not (better & are_inside(choices, limits, changed)).any()


def test_filling_takes_what_saves_most_first() -> None:
    choices = Choices.of([[(0, 9.0), (2, 8.0)], [(0, 5.0), (4, 2.0)], [(0, 5.0), (6, 1.0)]])
    filled = fill(choices, Limits.of_all(choices, 8), choices.smallest)
    assert choices.size[filled].tolist() == [2, 0, 6]
    grouped = fill(choices, Limits(np.array([1, 1, 0]), (5, 5), 100), choices.smallest)
    assert choices.size[grouped].tolist() == [0, 4, 0]


@given(st.lists(items(), min_size=1, max_size=4))
@settings(max_examples=30)
def test_steps_are_the_lower_hull(given_items: list[list[tuple[int, float]]]) -> None:
    choices = Choices.of(given_items)
    assert (np.diff(choices.step_rate) <= 0).all()
    for number, pairs in enumerate(given_items):
        own = choices.step[choices.item[choices.step] == number]
        ends = [int(choices.first[number]), *own.tolist()]
        assert ends[-1] == choices.first[number + 1] - 1
        corners = choices.size[ends], choices.cost[ends]
        for size, cost in pairs:
            assert cost >= np.interp(size, *corners) - 1e-12


def test_costs_a_million_million_times_smaller_are_minimised_too() -> None:
    random = np.random.default_rng(1)
    small = []
    for _ in range(8):
        costs = np.sort(random.uniform(1, 2, 3))[::-1] * 1e-12
        small.append(list(zip((10, 17, 29), costs.tolist(), strict=True)))
    alone = Choices.of(small)
    best = least(alone, Limits.of_all(alone, 8 * 16))
    choices = Choices.of([[(10, 1.0), (20, 0.5)], *small])
    found = solve(choices, Limits.of_all(choices, 20 + 8 * 16))
    assert found is not None
    assert choices.cost[found.chosen[1:]].sum() == pytest.approx(best, rel=0.02)


def test_items_on_no_gpu_count_for_the_total_alone() -> None:
    choices = Choices.of([[(10, 1.0), (90, 0.1)], [(10, 1.0), (90, 0.2)]])
    found = solve_on_gpus(choices, GPUs(np.array([-1, 0]), (0,), (15,)), 200)
    assert found is not None
    assert choices.size[found.chosen].tolist() == [90, 10]
    assert solve_on_gpus(choices, GPUs(np.array([-1, 0]), (6,), (15,)), 200) is None


SIZES = tuple(100 + 37 * step for step in range(18))
RANDOM = np.random.default_rng(0)
HARD = {
    "equal": [[(s, 4.0 ** -(s / 100)) for s in SIZES]] * 350,
    "equal but for scale": [
        [(s * m, m * 4.0 ** -(s / 100)) for s in SIZES] for m in RANDOM.integers(1, 500, 350)
    ],
    "cost is size": [
        [(s, 1.0 - s / 1000) for s in sorted(RANDOM.choice(1000, 18, replace=False).tolist())]
        for _ in range(350)
    ],
    "even sizes, odd room": [[(2 * s, 1000.0 - s) for s in range(18)]] * 350,
    "one is huge": [
        [(1 << 36, 1.0), (1 << 37, 0.5)],
        *([[(s, 1e-12 * (900 - s)) for s in SIZES]] * 349),
    ],
    "no costs": [[(s, 0.0)] for s in SIZES] * 19,
    "costs 0 at last": [[(s, 1.0 if s < 400 else 0.0) for s in (100, 400)]] * 350,
}


class Counted(Progress):
    """Adds up the work that searches report."""

    def __init__(self) -> None:
        self.most, self.done = 0.0, 0.0

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.most += total

    def advance(self, amount: float) -> None:
        assert amount > 0
        self.done += amount


@pytest.mark.parametrize("gpus", [0, 2, 8])
@pytest.mark.parametrize("name", HARD)
def test_hard_problems_end(name: str, gpus: int) -> None:
    """Counted in pairs of states, of which a second has millions."""
    counted = Counted()
    choices = Choices.of(HARD[name])
    count = len(choices.smallest)
    room = int(sum(choices.size[(choices.first[:-1] + choices.first[1:]) // 2])) + 1
    found = solve(choices, Limits.of_all(choices, room), work=Work(WORK, counted))
    counted.most += WORK
    if gpus:
        rooms = (RANDOM.uniform(0.9, 1.1, gpus) * room / gpus + 100).astype(np.int64)
        placed = GPUs(np.arange(count) // 4, (5,) * (count // 4 + 1), tuple(rooms.tolist()))
        found = solve_on_gpus(choices, placed, int(0.97 * room), progress=counted)
    if found is not None:
        assert found.cost == choices.total(found.chosen)
        assert found.bound <= found.cost
    assert (found is None) == (bool(gpus) and name in ("one is huge", "no costs"))
    assert counted.done < 1.2 * counted.most  # the last join of a search may be a large one


def equal_on_gpus(seed: int, gpus: int, layers: int) -> tuple[Choices, GPUs, int]:
    """Items whose ways to be cut have all nearly the same bound."""
    costs = np.sort(np.random.default_rng(seed).uniform(0, 1, 20))[::-1].tolist()
    sizes = [100 + 37 * step for step in range(20)]
    choices = Choices.of([list(zip(sizes, costs, strict=True))] * (2 * layers))
    room = int(450 * 2 * layers / gpus * 1.3)
    placed = GPUs(np.repeat(np.arange(layers), 2), (0,) * layers, (room,) * gpus)
    return choices, placed, 420 * 2 * layers


@pytest.mark.parametrize("seed", [4, 7, 8])
def test_ways_to_cut_are_found_without_a_search(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A way leaves the others that branch from it in the heap, and takes none back."""
    choices, gpus, total = equal_on_gpus(seed, 8, 88)
    pop, taken = heapq.heappop, 0

    def noted(heap: list[Any]) -> Any:  # noqa: ANN401
        nonlocal taken
        taken += 1
        assert taken <= 20
        return pop(heap)

    monkeypatch.setattr(solver.heapq, "heappop", noted)
    ways = itertools.islice(solver._Cuts(choices, gpus, total).ways(), 20)
    bounds, ends = zip(*ways, strict=True)
    assert len(set(ends)) == 20
    assert np.all(np.diff(bounds) >= -2 * solver.TIE * bounds[0])
