"""Small knapsacks for tests, and their answers by trying everything or by SciPy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.plan.solver import UNLIMITED, Choices, GPUs, Ints, Limits

MOST_SIZE = 60


@st.composite
def items(draw: st.DrawFn, unit: int = 1) -> list[tuple[int, float]]:
    """One to four choices by rising size and falling cost: among them 0, and equal gains."""
    sizes = sorted(draw(st.sets(st.integers(0, MOST_SIZE), min_size=1, max_size=4)))
    cost = st.one_of(st.floats(1e-6, 1), st.sampled_from([0.0, 1e-9, 2e-9, 0.25, 0.5, 0.75, 1.0]))
    costs = sorted(draw(st.sets(cost, min_size=len(sizes), max_size=len(sizes))), reverse=True)
    return [(unit * size, cost) for size, cost in zip(sizes, costs, strict=True)]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Choices, Limits]:
    """Up to five items in up to three groups; limits that some choice meets, or nearly so."""
    unit = draw(st.sampled_from([1, 10**9]))  # limits are kept to the last byte
    choices = Choices.of(draw(st.lists(items(unit), min_size=1, max_size=5)))
    count = len(choices.smallest)
    groups = draw(st.integers(1, 3))
    group = draw(st.lists(st.integers(0, groups - 1), min_size=count, max_size=count))
    spare = st.sampled_from([-1, 0, 0, 1, 7, None])

    def limit(within: Sequence[int]) -> int:
        size = sum(
            int(choices.size[draw(st.integers(choices.first[i], choices.first[i + 1] - 1))])
            for i in within
        )
        more = draw(spare)
        return UNLIMITED if more is None else max(0, size + more)

    rooms = tuple(limit([i for i in range(count) if group[i] == g]) for g in range(groups))
    return choices, Limits(np.array(group, np.int64), rooms, limit(range(count)))


@st.composite
def gpu_problems(draw: st.DrawFn) -> tuple[Choices, GPUs, int]:
    """Up to five items in up to five layers on up to three GPUs, and a total that may bind."""
    choices = Choices.of(draw(st.lists(items(), min_size=1, max_size=5)))
    layers, count = draw(st.integers(1, 5)), len(choices.smallest)
    layer = draw(st.lists(st.integers(-1, layers - 1), min_size=count, max_size=count))
    kept = draw(st.lists(st.integers(0, 20), min_size=layers, max_size=layers))
    rooms = draw(st.lists(st.integers(-5, 120), min_size=1, max_size=3))
    total = draw(st.one_of(st.integers(0, MOST_SIZE * count), st.just(UNLIMITED)))
    return choices, GPUs(np.array(layer, np.int64), tuple(kept), tuple(rooms)), total


def every(choices: Choices) -> Ints:
    """All ways to choose, one a row."""
    ranges = [range(start, stop) for start, stop in itertools.pairwise(choices.first.tolist())]
    return np.array(list(itertools.product(*ranges)), np.int64)


def are_inside(choices: Choices, limits: Limits, chosen: Ints) -> NDArray[np.bool_]:
    """Of each row of choices, whether its sizes exceed no limit."""
    sizes = choices.size[chosen]
    fits = sizes.sum(axis=1) <= limits.total
    for group, limit in enumerate(limits.groups):
        fits &= sizes[:, limits.group == group].sum(axis=1) <= limit
    return fits


def least(choices: Choices, limits: Limits) -> float:
    """The cost of the best solution; infinite where there is none."""
    ways = every(choices)
    return min(map(choices.total, ways[are_inside(choices, limits, ways)]), default=math.inf)


def cuts(gpus: GPUs, total: int) -> Iterator[Limits]:
    """The limits of every way to cut the layers, with the rules written out once more."""
    layers = len(gpus.kept)
    for inner in itertools.combinations_with_replacement(range(layers + 1), len(gpus.room) - 1):
        ends = (0, *inner, layers)
        group = np.full(len(gpus.layer), len(gpus.room))
        rooms = []
        for gpu, (start, end) in enumerate(itertools.pairwise(ends)):
            group[(gpus.layer >= start) & (gpus.layer < end)] = gpu
            used = sum(gpus.kept[start:end])
            rooms.append(gpus.room[gpu] - used if start < end else 0)
        yield Limits(group, (*rooms, UNLIMITED), total)


def by_scipy(choices: Choices, limits: Limits) -> float:
    """The least cost as SciPy's MILP solver finds it; infinite where there is none."""
    from scipy.optimize import Bounds, LinearConstraint, milp

    group = limits.group[choices.item]
    rows = [choices.size * (group == g) for g in range(len(limits.groups))]
    rooms = np.minimum([*limits.groups, limits.total], choices.size.sum())
    one = choices.item == np.arange(len(choices.smallest))[:, None]
    found = milp(
        choices.cost,
        integrality=1,
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(np.array([*rows, choices.size]), -np.inf, rooms),
            LinearConstraint(one.astype(float), 1, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return math.inf if found.x is None else float(found.fun)
