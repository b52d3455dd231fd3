"""The multiple-choice knapsack under nested limits: the problem, its relaxation, simple solutions.

Every item gets exactly one of its choices. Items lie in groups with limits of their own, and all
together have a limit. Sizes are integers, costs are not. `knapsack_search` solves it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Step:
    """From one choice of an item to the next on its convex hull, cost over size."""

    item: int
    choice: int
    size: int
    gain: float

    @property
    def rate(self) -> float:
        """Cost saved for each unit of size."""
        return self.gain / self.size


@dataclass(frozen=True)
class Choices:
    """The choices of all items, one after the other; an item's by rising size and falling cost.

    Attributes:
        item: of each choice.
        first: each item's first choice, and the number of choices as the last entry.
        steps: along all items' hulls, the best rate first.
    """

    item: Ints
    size: Ints
    cost: Floats
    first: Ints
    steps: tuple[Step, ...]

    @staticmethod
    def of(items: Sequence[Sequence[tuple[int, float]]]) -> Choices:
        """From (size, cost) of each item's choices; each larger one must cost less."""
        counts = [len(choices) for choices in items]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        steps = [s for i, choices in enumerate(items) for s in _hull(i, int(first[i]), choices)]
        flat = [choice for choices in items for choice in choices]
        return Choices(
            np.repeat(np.arange(len(items), dtype=np.int64), counts),
            np.array([size for size, _ in flat], np.int64),
            np.array([cost for _, cost in flat], np.float64),
            first,
            tuple(sorted(steps, key=lambda step: (-step.rate, step.choice))),
        )

    @property
    def smallest(self) -> Ints:
        """Size of each item's smallest choice."""
        return self.size[self.first[:-1]]

    def total(self, chosen: Ints) -> float:
        return math.fsum(self.cost[chosen])

    def part(self, items: Ints) -> tuple[Choices, Ints]:
        """Only these items' choices, and what their numbers are here."""
        at = np.concatenate([np.arange(self.first[i], self.first[i + 1]) for i in items])
        every = self.pairs(np.zeros(len(self.first) - 1))
        return Choices.of([every[i] for i in items]), at

    def pairs(self, less: Floats) -> list[list[tuple[int, float]]]:
        """(size, cost) of each item's choices, `less` of each item taken from its costs."""
        costs = (self.cost - less[self.item]).tolist()
        every = list(zip(self.size.tolist(), costs, strict=True))
        return [every[start:stop] for start, stop in pairwise(self.first.tolist())]


def _hull(item: int, first: int, choices: Sequence[tuple[int, float]]) -> list[Step]:
    """Steps of falling rate from an item's smallest choice to its largest."""
    kept: list[int] = []
    steps: list[Step] = []
    for number, (size, cost) in enumerate(choices):
        while kept:
            last_size, last_cost = choices[kept[-1]]
            step = Step(item, first + number, size - last_size, last_cost - cost)
            if not steps or step.rate < steps[-1].rate:
                steps.append(step)
                break
            kept.pop()
            steps.pop()
        kept.append(number)
    return steps


@dataclass(frozen=True)
class Limits:
    """Which sizes must not be exceeded.

    Attributes:
        group: of each item.
        groups: limit of each group's sizes.
        total: limit of all sizes.
    """

    group: Ints
    groups: tuple[int, ...]
    total: int

    @staticmethod
    def of_all(choices: Choices, total: int) -> Limits:
        """A limit of all sizes alone."""
        return Limits(np.zeros(len(choices.first) - 1, np.int64), (UNLIMITED,), total)

    def most(self, choices: Choices) -> int:
        """The largest sum of sizes that the groups' limits allow."""
        largest = np.zeros(len(self.groups), np.int64)
        np.add.at(largest, self.group, choices.size[choices.first[1:] - 1])
        return int(np.minimum(largest, self.groups).sum())

    def left(self, choices: Choices, chosen: Ints) -> tuple[Ints, int]:
        """What the choices leave of each group's limit and of the total; negative: too much."""
        sizes = choices.size[chosen]
        used = np.zeros(len(self.groups), np.int64)
        np.add.at(used, self.group, sizes)
        return np.array(self.groups, np.int64) - used, self.total - int(sizes.sum())


@dataclass(frozen=True)
class Solution:
    """A choice for every item, and a proven bound of what any could cost.

    Attributes:
        chosen: None where there is no solution, or none better than what was known.
        cost: infinite where there is none.
    """

    chosen: Ints | None
    cost: float
    bound: float


@dataclass(frozen=True)
class Relaxation:
    """The linear relaxation's optimum.

    Attributes:
        chosen: its choices, those that it divides rounded down.
        price: of a unit of size in each group, the total's included.
        total_price: of a unit of the total.
        reduced: of each choice, what it costs beyond the cheapest of its item at these prices.
        bound: no solution costs less.
    """

    chosen: Ints
    price: Floats
    total_price: float
    reduced: Floats
    bound: float


def relax(choices: Choices, limits: Limits) -> Relaxation | None:
    """The linear relaxation; None when even the smallest choices exceed a limit.

    Steps are taken by rate until a group, or all, are full: optimal because limits are nested.
    """
    chosen = choices.first[:-1].copy()
    room, total_room = limits.left(choices, chosen)
    if total_room < 0 or (room < 0).any():
        return None
    group, left, total = limits.group.tolist(), room.tolist(), total_room
    price: list[float | None] = [None] * len(left)
    total_price = 0.0
    for step in choices.steps:
        at = group[step.item]
        if price[at] is not None:
            continue
        if step.size <= min(left[at], total):
            chosen[step.item] = step.choice
            left[at] -= step.size
            total -= step.size
        elif left[at] <= total:
            price[at] = step.rate
            total -= left[at]
        else:
            total_price = step.rate
            break
    prices = np.array([total_price if p is None else p for p in price])
    above = choices.size - choices.smallest[choices.item]
    reduced = choices.cost + prices[limits.group[choices.item]] * above
    cheapest = np.minimum.reduceat(reduced, choices.first[:-1])
    own = ((prices - total_price) * room)[prices > total_price]
    bound = math.fsum([*cheapest, *-own, -total_price * total_room])
    return Relaxation(chosen, prices, total_price, reduced - cheapest[choices.item], bound)


def fill(choices: Choices, limits: Limits, chosen: Ints) -> Ints:
    """Change one item after the other while a choice that costs less fits, most saved first.

    So afterwards no item alone can be improved within the limits.
    """
    chosen = chosen.copy()
    left, total = limits.left(choices, chosen)
    group = limits.group[choices.item]
    while True:
        held = chosen[choices.item]
        more = choices.size - choices.size[held]
        saved = choices.cost[held] - choices.cost
        fits = (saved > 0) & (more <= np.minimum(left[group], total))
        if not fits.any():
            return chosen
        best = int(np.argmax(np.where(fits, saved, -1.0)))
        left[group[best]] -= more[best]
        total -= int(more[best])
        chosen[choices.item[best]] = best
