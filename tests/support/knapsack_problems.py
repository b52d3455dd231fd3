"""Small knapsacks for tests, and their answers by trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from quantkit.plan.solver.knapsack import UNLIMITED, Choices, Ints, Limits

MOST_SIZE = 60


@st.composite
def items(draw: st.DrawFn) -> list[tuple[int, float]]:
    """One to four choices by rising size and falling cost: among them 0, and equal gains."""
    sizes = sorted(draw(st.sets(st.integers(0, MOST_SIZE), min_size=1, max_size=4)))
    cost = st.one_of(st.floats(1e-6, 1), st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]))
    costs = sorted(draw(st.sets(cost, min_size=len(sizes), max_size=len(sizes))), reverse=True)
    return list(zip(sizes, costs, strict=True))


@st.composite
def problems(draw: st.DrawFn) -> tuple[Choices, Limits]:
    """Up to five items in up to three groups; limits that some choice meets, or nearly so."""
    choices = Choices.of(draw(st.lists(items(), min_size=1, max_size=5)))
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


def solutions(choices: Choices, limits: Limits) -> Ints:
    """All ways to choose within the limits, one a row."""
    ways = every(choices)
    return ways[are_inside(choices, limits, ways)]


def least(choices: Choices, limits: Limits) -> float:
    """The cost of the best solution; infinite where there is none."""
    return min(map(choices.total, solutions(choices, limits)), default=math.inf)
