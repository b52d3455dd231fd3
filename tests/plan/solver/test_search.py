"""The search for the least cost: against everything tried, and against a dynamic program."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knapsack_problems import are_inside, least, problems, solutions

from quantkit.plan.solver import search
from quantkit.plan.solver.knapsack import UNLIMITED, Choices, Floats, Limits, Solution, fill, relax
from quantkit.plan.solver.search import settle, solve

EXACT = 1e-9
ROUNDING = 1e-12
SOLVER = 2e-6
"""HiGHS ends at 1e-6 of what it looks at, and takes 1e-6 too much; SciPy offers no options."""


def check(found: Solution, choices: Choices, limits: Limits) -> None:
    """That a solution is one, costs what it says, and that its bound is below it."""
    assert found.chosen is not None
    assert choices.item[found.chosen].tolist() == list(range(len(choices.smallest)))
    assert are_inside(choices, limits, found.chosen[None]).all()
    assert found.cost == pytest.approx(choices.total(found.chosen), rel=1e-15)
    assert found.bound <= found.cost


@given(problems(), st.sampled_from([EXACT, 1e-5, 0.05, 0.3]))
@settings(max_examples=40)
def test_the_least_cost_is_found_within_the_gap(
    problem: tuple[Choices, Limits], gap: float
) -> None:
    choices, limits = problem
    best, found = least(choices, limits), solve(choices, limits, gap)
    assert (found.chosen is None) == math.isinf(best)
    if found.chosen is None:
        assert math.isinf(found.cost)
        assert math.isinf(found.bound)
        return
    check(found, choices, limits)
    assert found.bound <= best * (1 + ROUNDING)
    assert found.cost - found.bound <= (gap + SOLVER) * found.cost


@given(problems(), st.sampled_from([0.5, 0.999, 1.0, 1.0001, 1.5]), st.booleans())
@settings(max_examples=40)
def test_only_what_costs_less_than_what_is_known_is_found(
    problem: tuple[Choices, Limits], factor: float, exact: bool
) -> None:
    choices, limits = problem
    best, gap = least(choices, limits), EXACT if exact else 0.1
    known = factor * best if best < math.inf else 1.0
    found = solve(choices, limits, gap, known)
    assert found.bound <= best * (1 + ROUNDING)
    if found.chosen is None:
        assert math.isinf(found.cost)
        assert best >= known * (1 - gap - SOLVER)  # so none is better by more than the gap
    else:
        check(found, choices, limits)
        assert found.cost < known


def ladder(seed: int, count: int) -> Choices:
    """Items like tensors: costs that fall fourfold a step, of very different heights."""
    random = np.random.default_rng(seed)
    items = []
    for _ in range(count):
        sizes = np.cumsum(random.integers(1, 9, 4))
        costs = random.lognormal(0, 2) * 4.0 ** -np.arange(4) * random.lognormal(0, 0.1, 4)
        pairs = zip(sizes.tolist(), np.sort(costs)[::-1].tolist(), strict=True)
        items.append(list(pairs))
    return Choices.of(items)


def by_dynamic_program(choices: Choices, limits: Limits) -> float:
    """The least cost: of each group for each size, then of all groups for each size."""
    width = min(limits.total, int(choices.size[choices.first[1:] - 1].sum())) + 1

    def added(table: Floats, other: Floats) -> Floats:
        sums = np.full(width, np.inf)
        for size in np.flatnonzero(np.isfinite(other)):
            sums[size:] = np.minimum(sums[size:], table[: width - size] + other[size])
        return sums

    nothing = np.where(np.arange(width) == 0, 0.0, np.inf)
    whole = nothing
    items = choices.pairs(np.zeros(len(choices.smallest)))
    for group, limit in enumerate(limits.groups):
        own = nothing
        for item in np.flatnonzero(limits.group == group):
            one = np.full(width, np.inf)
            for size, cost in items[item]:
                if size < width:
                    one[size] = cost
            own = added(own, one)
        own[limit + 1 :] = np.inf
        whole = added(whole, own)
    return float(whole.min())


@pytest.mark.parametrize(
    ("groups", "total"),
    [
        ((UNLIMITED,), 500),
        ((UNLIMITED,), 350),
        ((130, 190, 160), UNLIMITED),  # solved apart
        ((130, 190, 160), 480),  # the total is what the groups allow
        ((130, 190, 160), 470),
        ((130, UNLIMITED), 410),
        ((150, 330), 440),
    ],
)
def test_many_items_cost_what_a_dynamic_program_finds(groups: tuple[int, ...], total: int) -> None:
    choices = ladder(total, 40)
    limits = Limits(np.arange(40) % len(groups), groups, total)
    best, found = by_dynamic_program(choices, limits), solve(choices, limits, EXACT)
    check(found, choices, limits)
    assert best * (1 - SOLVER) <= found.bound <= best * (1 + ROUNDING)
    assert best * (1 - ROUNDING) <= found.cost <= best * (1 + SOLVER)
    simple = relax(choices, limits)
    assert simple is not None
    assert choices.total(fill(choices, limits, simple.chosen)) > found.cost  # there was work to do


@pytest.mark.parametrize(
    ("groups", "total"), [((130, 190, 160), 450), ((60,) * 8, UNLIMITED), ((60,) * 8, 470)]
)
def test_a_gap_is_of_all_groups_together(groups: tuple[int, ...], total: int) -> None:
    choices = ladder(5, 40)
    limits = Limits(np.arange(40) % len(groups), groups, total)
    best = by_dynamic_program(choices, limits)
    for gap in (0.1, 0.05, 0.02, 0.01, 1e-4):
        found = solve(choices, limits, gap)
        check(found, choices, limits)
        assert found.bound <= best * (1 + ROUNDING)
        assert found.cost - found.bound <= (gap + SOLVER) * found.cost


def test_a_search_without_nodes_still_states_a_bound_that_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "NODES", 0)
    open_ends = 0
    for seed in range(4):
        choices = ladder(seed, 40)
        limits = Limits(np.arange(40) % 3, (130, 190, 160), 470)
        best, found = by_dynamic_program(choices, limits), solve(choices, limits, EXACT)
        check(found, choices, limits)
        assert found.bound <= best * (1 + ROUNDING)
        open_ends += found.bound < found.cost * (1 - 1e-6)
    assert open_ends


@given(problems(), st.sampled_from([10**6, 10**9, 10**10]), st.integers(0, 3))
@settings(max_examples=20)
def test_limits_are_kept_to_the_last_byte(
    problem: tuple[Choices, Limits], unit: int, short: int
) -> None:
    """HiGHS tolerates a millionth of a limit: of a GPU's memory that is thousands of bytes."""
    small, limits = problem
    larger = [
        [(size * unit, cost) for size, cost in pairs]
        for pairs in small.pairs(np.zeros(len(small.smallest)))
    ]
    choices = Choices.of(larger)
    rooms = [
        room if room == UNLIMITED else max(room * unit - short, 0)
        for room in (*limits.groups, limits.total)
    ]
    tight = Limits(limits.group, tuple(rooms[:-1]), rooms[-1])
    best, found = least(choices, tight), solve(choices, tight, EXACT)
    assert (found.chosen is None) == math.isinf(best)
    if found.chosen is not None:
        check(found, choices, tight)
        assert found.bound <= best * (1 + ROUNDING)


@given(problems(), problems(), st.sampled_from([1e-6, 1e-9]))
@settings(max_examples=20)
def test_costs_far_below_the_others_are_settled_too(
    large: tuple[Choices, Limits], small: tuple[Choices, Limits], scale: float
) -> None:
    """Whatever the large items have, the small ones get the best that is left for them."""
    (first, limits), (second, _) = large, small
    inside = solutions(first, limits)
    if not len(inside) or first.total(inside[-1]) < 0.01:
        return
    count, more = len(first.smallest), len(second.smallest)
    choices = Choices.of(
        first.pairs(np.zeros(count))
        + [[(s, scale * c) for s, c in pairs] for pairs in second.pairs(np.zeros(more))]
    )
    group = np.concatenate([limits.group, np.zeros(more, np.int64)])
    rooms = [limits.groups[0] + int(second.smallest.sum()) + 20, *limits.groups[1:]]
    both = Limits(group, tuple(min(room, UNLIMITED) for room in rooms), UNLIMITED)
    start = np.concatenate([inside[-1], second.first[:-1] + len(first.item)])
    gap = 1e-3
    settled = settle(choices, both, start, gap)
    assert are_inside(choices, both, settled[None]).all()
    assert choices.total(settled) <= choices.total(start)
    left = both.left(choices, settled)[0][0] + choices.size[settled[count:]].sum()
    lowest = second.cost[second.first[1:] - 1].sum()
    best = least(second, Limits.of_all(second, int(left)))
    got = choices.cost[settled[count:]].sum() / scale
    assert got - lowest <= (best - lowest) * (1 + gap) + 1e-9


def test_settling_goes_on_from_scale_to_scale() -> None:
    """Groups a million times smaller each; in the last, what saves most a byte is not the best."""
    pairs = [[(10, scale * 3), (11, scale * left)] for scale in (1.0, 1e-6) for left in (2.0, 1.0)]
    three = [
        [(10, 9e-12), (10 + more, (9 - saved) * 1e-12)] for more, saved in ((6, 4), (5, 3), (5, 3))
    ]
    choices = Choices.of([*pairs, *three])
    limits = Limits(np.array([0, 0, 1, 1, 2, 2, 2]), (21, 21, 40), UNLIMITED)
    first = choices.first[:-1]
    careless = first + np.array([1, 0, 1, 0, 0, 0, 0])
    settled = settle(choices, limits, careless, 1e-4)
    # what lies above the gap is not touched
    assert (settled - first).tolist() == [1, 0, 0, 1, 0, 1, 1]
    assert (careless - first).tolist() == [1, 0, 1, 0, 0, 0, 0]


def test_one_item_and_no_room_for_more() -> None:
    choices = Choices.of([[(0, 3.0), (4, 1.0), (9, 0.0)]])
    for total, size in ((0, 0), (3, 0), (4, 4), (8, 4), (9, 9), (UNLIMITED, 9)):
        found = solve(choices, Limits.of_all(choices, total), EXACT)
        check(found, choices, Limits.of_all(choices, total))
        assert found.chosen is not None
        assert choices.size[found.chosen].tolist() == [size]
        assert found.bound == pytest.approx(found.cost)
    assert solve(choices, Limits.of_all(choices, -1), EXACT) == Solution(None, math.inf, math.inf)


def test_groups_of_no_room_keep_what_takes_none() -> None:
    choices = Choices.of([[(0, 3.0), (4, 1.0)], [(0, 2.0), (4, 0.0)], [(1, 2.0), (3, 1.0)]])
    for total in (UNLIMITED, 4):
        limits = Limits(np.array([0, 1, 1]), (0, 5), total)
        found = solve(choices, limits, EXACT)
        check(found, choices, limits)
        assert found.chosen is not None
        assert choices.size[found.chosen].tolist() == ([0, 4, 1] if total > 4 else [0, 0, 3])
    none = Limits(np.array([0, 1, 0]), (0, 5), UNLIMITED)
    assert solve(choices, none, EXACT).chosen is None


def test_equal_items_are_all_taken_that_fit() -> None:
    """Nothing tells them apart, so the bound is what takes work."""
    choices = Choices.of([[(3, 2.0), (8, 1.0)]] * 9)
    found = solve(choices, Limits.of_all(choices, 27 + 5 * 4 + 4), EXACT)
    assert found.cost == 18 - 4
    assert found.bound == pytest.approx(14)
    free = Choices.of([[(3, 1.0), (8, 0.0)]] * 4)
    nothing = solve(free, Limits.of_all(free, 40), EXACT)
    assert (nothing.cost, nothing.bound) == (0.0, 0.0)
