"""The knapsack: hulls, limits, the relaxation against an LP solver, simple solutions."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from knapsack_problems import are_inside, items, least, problems, solutions

from quantkit.plan.solver.knapsack import UNLIMITED, Choices, Limits, fill, relax

THREE = Choices.of([[(1, 9.0), (3, 4.0)], [(0, 2.0)], [(2, 5.0), (4, 3.0), (9, 0.0)]])


def lp_optimum(choices: Choices, limits: Limits) -> float:
    """The relaxation's least cost as SciPy's LP solver finds it; infinite where there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    group = limits.group[choices.item]
    rows = [choices.size * (group == g) for g in range(len(limits.groups))]
    rooms = np.minimum([*limits.groups, limits.total], choices.size.sum())
    one = choices.item == np.arange(len(choices.smallest))[:, None]
    found = milp(
        choices.cost,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(np.array([*rows, choices.size]), -np.inf, rooms),
            LinearConstraint(one.astype(float), 1, 1),
        ],
    )
    return math.inf if found.x is None else float(found.fun)


def test_choices_lie_one_item_after_the_other() -> None:
    assert THREE.item.tolist() == [0, 0, 1, 2, 2, 2]
    assert THREE.first.tolist() == [0, 2, 3, 6]
    assert THREE.smallest.tolist() == [1, 0, 2]
    assert THREE.total(np.array([1, 2, 4])) == 4.0 + 2.0 + 3.0
    assert THREE.pairs(np.array([1.0, 0.0, 0.5])) == [
        [(1, 8.0), (3, 3.0)], [(0, 2.0)], [(2, 4.5), (4, 2.5), (9, -0.5)],
    ]  # fmt: skip
    part, at = THREE.part(np.array([2, 0]))
    assert at.tolist() == [3, 4, 5, 0, 1]
    assert part.size.tolist() == THREE.size[at].tolist()
    assert part.cost.tolist() == THREE.cost[at].tolist()
    assert part.item.tolist() == [0, 0, 0, 1, 1]


def test_steps_are_taken_by_rate_and_leave_out_what_lies_on_the_way() -> None:
    """Of (2, 7) and (4, 5) the first is above the line from (1, 8) to (4, 5), or on it."""
    choices = Choices.of([[(1, 8.0), (2, 7.0), (4, 5.0), (5, 1.0)], [(0, 6.0), (2, 0.0)]])
    steps = [(s.item, s.choice, s.size, s.gain, s.rate) for s in choices.steps]
    assert steps == [(1, 5, 2, 6.0, 3.0), (0, 3, 4, 7.0, 1.75)]
    line = Choices.of([[(0, 3.0), (1, 2.0), (2, 1.0), (4, 0.5)]])
    assert [(s.choice, s.size, s.gain) for s in line.steps] == [(2, 2, 2.0), (3, 2, 0.5)]


@given(st.lists(items(), min_size=1, max_size=4))
@settings(max_examples=30)
def test_steps_are_the_lower_hull(given_items: list[list[tuple[int, float]]]) -> None:
    choices = Choices.of(given_items)
    rates = [step.rate for step in choices.steps]
    assert rates == sorted(rates, reverse=True)
    for number, pairs in enumerate(given_items):
        own = [step for step in choices.steps if step.item == number]
        ends = [int(choices.first[number]), *(step.choice for step in own)]
        assert ends[-1] == choices.first[number + 1] - 1
        assert all(before.rate > after.rate for before, after in pairwise(own))
        corners = choices.size[ends], choices.cost[ends]
        assert np.diff(corners[0]).tolist() == [step.size for step in own]
        for size, cost in pairs:
            assert cost >= np.interp(size, *corners) - 1e-12


def test_limits_count_by_group_and_in_all() -> None:
    limits = Limits(np.array([1, 0, 1]), (5, 8), 12)
    groups, total = limits.left(THREE, np.array([1, 2, 5]))
    assert groups.tolist() == [5, 8 - 3 - 9]
    assert total == 12 - 12
    assert limits.most(THREE) == 0 + 8
    assert Limits(limits.group, (5, 100), 12).most(THREE) == 0 + 3 + 9
    alone = Limits.of_all(THREE, 7)
    assert alone.left(THREE, np.array([0, 2, 3]))[1] == 7 - 3
    assert alone.most(THREE) == 12


@given(problems())
@settings(max_examples=40)
def test_the_relaxation_is_that_of_an_lp_solver(problem: tuple[Choices, Limits]) -> None:
    choices, limits = problem
    found, optimum = relax(choices, limits), lp_optimum(choices, limits)
    assert (found is None) == math.isinf(optimum)
    if found is None:
        return
    assert found.bound == pytest.approx(optimum, rel=1e-6, abs=1e-7)
    assert are_inside(choices, limits, found.chosen[None]).all()
    assert (found.price >= found.total_price).all()
    assert np.minimum.reduceat(found.reduced, choices.first[:-1]).tolist() == [0.0] * len(
        choices.smallest
    )


@given(problems())
@settings(max_examples=40)
def test_no_solution_costs_less_than_the_bound_and_what_its_choices_add(
    problem: tuple[Choices, Limits],
) -> None:
    choices, limits = problem
    found = relax(choices, limits)
    inside = solutions(choices, limits)
    assert (found is not None) == bool(len(inside))
    if found is not None:
        costs = choices.cost[inside].sum(axis=1)
        assert (costs >= found.bound + found.reduced[inside].sum(axis=1) - 1e-12).all()


@given(problems(), st.integers(0, 1 << 20))
@settings(max_examples=40)
def test_after_filling_no_item_alone_can_be_improved(
    problem: tuple[Choices, Limits], number: int
) -> None:
    choices, limits = problem
    inside = solutions(choices, limits)
    if not len(inside):
        return
    start = inside[number % len(inside)]
    before = start.copy()
    filled = fill(choices, limits, start)
    assert np.array_equal(start, before)
    assert choices.item[filled].tolist() == list(range(len(filled)))
    assert are_inside(choices, limits, filled[None]).all()
    assert (choices.cost[filled] <= choices.cost[start]).all()
    changed = np.tile(filled, (len(choices.item), 1))
    changed[np.arange(len(changed)), choices.item] = np.arange(len(changed))
    better = choices.cost < choices.cost[filled][choices.item]
    assert not (better & are_inside(choices, limits, changed)).any()


def test_filling_takes_what_saves_most_first() -> None:
    choices = Choices.of([[(0, 9.0), (2, 8.0)], [(0, 5.0), (4, 2.0)], [(0, 5.0), (6, 1.0)]])
    filled = fill(choices, Limits.of_all(choices, 8), choices.first[:-1])
    assert choices.size[filled].tolist() == [2, 0, 6]
    grouped = fill(choices, Limits(np.array([1, 1, 0]), (5, 5), 100), choices.first[:-1])
    assert choices.size[grouped].tolist() == [0, 4, 0]


def test_equal_gains_are_divided_between_the_first_of_them() -> None:
    choices = Choices.of([[(1, 2.0), (4, 1.0)]] * 4)
    found = relax(choices, Limits.of_all(choices, 4 + 3 + 3 + 2))
    assert found is not None
    assert choices.size[found.chosen].tolist() == [4, 4, 1, 1]
    assert found.bound == pytest.approx(8 - 8 / 3)
    assert found.total_price == pytest.approx(1 / 3)
    assert found.reduced == pytest.approx(np.zeros(8))


def test_prices_are_those_of_what_binds() -> None:
    """Group 0 is full at rate 3, all at rate 1; nothing is asked for group 2."""
    choices = Choices.of([[(0, 9.0), (3, 0.0)], [(0, 2.0), (2, 0.0)], [(0, 5.0), (5, 0.0)]])
    found = relax(choices, Limits(np.array([0, 1, 1]), (2, 50, 0), 5))
    assert found is not None
    assert found.price.tolist() == [3.0, 1.0, 1.0]
    assert found.total_price == 1.0
    assert found.bound == 16 - 2 * 3.0 - 3 * 1.0
    assert choices.size[found.chosen].tolist() == [0, 2, 0]


def test_without_limits_everything_is_largest_and_nothing_has_a_price() -> None:
    found = relax(THREE, Limits.of_all(THREE, UNLIMITED))
    assert found is not None
    assert found.chosen.tolist() == [1, 2, 5]
    assert found.bound == THREE.total(found.chosen)
    assert found.price.tolist() == [0.0]
    assert found.total_price == 0.0


@pytest.mark.parametrize(
    ("groups", "total", "expected"),
    [
        ((0, 20), 20, [0, 4]),  # a group without room keeps what takes none
        ((20, 3), 20, [7, 3]),
        ((20, 2), 20, None),
        ((0, 3), 3, [0, 3]),
        ((0, 2), 9, None),
        ((0, 4), 4, [0, 4]),
        ((-1, 20), 20, None),
        ((20, 20), 2, None),
    ],
)
def test_groups_with_little_room_or_none(
    groups: tuple[int, int], total: int, expected: list[int] | None
) -> None:
    choices = Choices.of([[(0, 3.0), (7, 1.0)], [(3, 5.0), (4, 2.0)]])
    limits = Limits(np.array([0, 1]), groups, total)
    found = relax(choices, limits)
    assert math.isinf(least(choices, limits)) == (expected is None) == (found is None)
    if found is not None:
        assert choices.size[fill(choices, limits, found.chosen)].tolist() == expected


def test_one_item_with_one_choice() -> None:
    choices = Choices.of([[(5, 3.0)]])
    assert choices.steps == ()
    found = relax(choices, Limits.of_all(choices, 5))
    assert found is not None
    assert (found.chosen.tolist(), found.bound) == ([0], 3.0)
    assert relax(choices, Limits.of_all(choices, 4)) is None
