"""The knapsack and the cuts: bounds that hold, small costs that count, limits of search."""

from __future__ import annotations

import itertools
import math
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.plan.solver import layer_cuts
from quantkit.plan.solver.knapsack import UNLIMITED, Choices, Limits, fill, relax
from quantkit.plan.solver.layer_cuts import GPUs, solve_on_gpus
from quantkit.plan.solver.search import settle, solve


@st.composite
def problems(draw: st.DrawFn) -> Choices:
    items = []
    for _ in range(draw(st.integers(1, 6))):
        sizes = sorted(draw(st.sets(st.integers(1, 500), min_size=1, max_size=4)))
        costs = sorted(draw(st.sets(st.floats(1e-6, 1), min_size=len(sizes), max_size=len(sizes))))
        items.append(list(zip(sizes, reversed(costs), strict=True)))
    return Choices.of(items)


def all_choices(choices: Choices) -> list[np.ndarray]:
    ranges = [range(start, stop) for start, stop in itertools.pairwise(choices.first.tolist())]
    return [np.array(chosen) for chosen in itertools.product(*ranges)]


@given(problems(), st.floats(0, 1), st.floats(0.5, 1.5))
@settings(max_examples=100)
def test_the_relaxation_bounds_every_solution(
    choices: Choices, share: float, looseness: float
) -> None:
    """And no choice is in a solution that costs less than the bound and its reduced cost."""
    small, large = choices.smallest.sum(), choices.size[choices.first[1:] - 1].sum()
    total = int(small + share * (large - small))
    group = np.arange(len(choices.smallest)) % 2
    rooms = [
        int(choices.smallest[group == g].sum() + looseness * share * (large - small) / 2)
        for g in (0, 1)
    ]
    limits = Limits(group, tuple(rooms), total)
    found = relax(choices, limits)
    assert found is not None
    for chosen in all_choices(choices):
        left, rest = limits.left(choices, chosen)
        if rest >= 0 and (left >= 0).all():
            cost = choices.total(chosen)
            assert cost >= found.bound * (1 - 1e-12) - 1e-15
            assert cost >= found.bound + found.reduced[chosen].max() - 1e-12
    filled = fill(choices, limits, found.chosen)
    left, rest = limits.left(choices, filled)
    assert rest >= 0
    assert (left >= 0).all()


def test_costs_that_a_gap_would_swallow_are_settled() -> None:
    """One item costs a million million times what the others do; they still get their best."""
    random = np.random.default_rng(1)
    items = [[(10, 1.0), (20, 0.5)]]
    for _ in range(12):
        costs = np.sort(random.uniform(1, 2, 4))[::-1] * 1e-12
        items.append([(int(s), float(c)) for s, c in zip((10, 17, 29, 40), costs, strict=True)])
    choices = Choices.of(items)
    limits = Limits.of_all(choices, 20 + 12 * 22)
    careless = choices.first[:-1].copy()
    careless[0] += 1
    chosen = settle(choices, limits, careless, 1e-6)
    others = Choices.of(items[1:])
    best = solve(others, Limits.of_all(others, 12 * 22), 1e-9)
    assert choices.cost[chosen[1:]].sum() == pytest.approx(best.cost, rel=1e-9)
    assert chosen[0] == careless[0]


def test_the_whole_search_counts_small_costs_too() -> None:
    items = [
        [(10, 1.0), (20, 0.5)],
        *([[(10, 3e-13), (11, 1e-13)]] * 4),
        [(10, 9e-13), (13, 1e-13)],
    ]
    choices = Choices.of(items)
    found = solve(choices, Limits.of_all(choices, 20 + 50 + 4), 1e-9)
    assert found.chosen is not None
    chosen = settle(choices, Limits.of_all(choices, 74), found.chosen, 1e-9)
    assert choices.size[chosen].tolist() == [20, 11, 10, 10, 10, 13] or (
        sorted(choices.size[chosen].tolist()) == [10, 10, 10, 11, 13, 20]
    )


def test_nothing_that_highs_says_reaches_the_standard_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    from quantkit.plan.solver.search import _silenced

    with _silenced():
        os.write(1, b"said by a library")
    os.write(1, b"said after")
    assert capfd.readouterr().out == "said after"


def gpus_problem(seed: int) -> tuple[Choices, GPUs]:
    random = np.random.default_rng(seed)
    items, layer = [], []
    for at in range(12):
        for _ in range(2):
            sizes = np.cumsum(random.integers(50, 150, 5))
            costs = random.lognormal(0, 1) * 4.0 ** -np.arange(5) * random.lognormal(0, 0.1, 5)
            items.append(
                [(int(s), float(c)) for s, c in zip(sizes, np.sort(costs)[::-1], strict=True)]
            )
            layer.append(at)
    room = (1700, 2300, 1500)
    return Choices.of(items), GPUs(np.array(layer), (10,) * 12, room)


def test_a_search_that_is_cut_short_states_a_gap_that_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choices, gpus = gpus_problem(3)
    whole = solve_on_gpus(choices, gpus, UNLIMITED, 1e-9)
    assert whole.bound == pytest.approx(whole.cost, rel=1e-6)
    monkeypatch.setattr(layer_cuts, "MOST_SOLVED", 0)
    cut = solve_on_gpus(choices, gpus, UNLIMITED, 1e-9)
    assert cut.chosen is not None
    assert gpus.hold(choices, cut.chosen)
    assert cut.bound < whole.cost <= cut.cost
    assert not math.isclose(cut.bound, cut.cost, rel_tol=1e-6)


def test_items_on_no_gpu_count_for_the_total_alone() -> None:
    choices = Choices.of([[(10, 1.0), (90, 0.1)], [(10, 1.0), (90, 0.2)]])
    gpus = GPUs(np.array([-1, 0]), (0,), (15,))
    found = solve_on_gpus(choices, gpus, 200, 1e-9)
    assert found.chosen is not None
    assert choices.size[found.chosen].tolist() == [90, 10]
    assert solve_on_gpus(choices, GPUs(np.array([-1, 0]), (6,), (15,)), 200, 1e-9).chosen is None
