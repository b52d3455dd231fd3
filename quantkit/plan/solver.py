"""A multiple-choice knapsack under nested limits, solved to a proven bound; no tensors.

Every item gets exactly one of its choices, at the least summed cost. Sizes are integers, costs are
not. Items lie in groups with a limit each, and all together have a limit.

A linear relaxation gives a bound, prices of the limits, and what each choice costs at them beyond
the cheapest of its item. A dynamic program then lists the ways to choose that cost little beyond
the bound; the cheapest of them that fits is the optimum. Its work is limited by counts and not by
seconds: the same input gives the same result. Where the limit is met, the bound says how far from
the optimum the result may be.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNLIMITED = 1 << 62
WORK, PER_JOIN = 6_000_000, 500
"""Pairs of states that one search may join, about a second; each join counts as PER_JOIN more."""
PAIRS = 1 << 21
"""Pairs that one pass over a group may join; decides how many states it keeps at once."""
KEPT = 1024
"""States of a group, and of groups together, that are kept."""
FIRST_REACH, FURTHER = 1 / 64, 4
"""A pass first looks only so near to the bound, as a share of what is open; then further."""
ROUNDING = 1e-13
"""Of sums of costs in F64, relative: differences below it are none."""
TIE = 1e-9
"""Bounds that differ by less, relative, count as equal."""
FAR = 1 << 50
"""More than any size left to fill."""


@dataclass(frozen=True)
class Choices:
    """The choices of all items, one after the other; an item's by rising size and falling cost.

    Attributes:
        item: of each choice.
        first: each item's first choice, and the number of choices as the last entry.
        step: the choices that the steps along all items' convex hulls of cost over size lead to,
            by falling rate. `step_rate` is the cost that a step saves for each unit of its size.
    """

    item: Ints
    size: Ints
    cost: Floats
    first: Ints
    step: Ints
    step_size: Ints
    step_rate: Floats

    @staticmethod
    def of(items: Sequence[Sequence[tuple[int, float]]]) -> Choices:
        """From (size, cost) of each item's choices; each larger one must cost less."""
        counts = [len(choices) for choices in items]
        first = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        flat = [choice for choices in items for choice in choices]
        starts = zip(first.tolist(), items, strict=False)
        steps = [step for start, choices in starts for step in _hull(start, choices)]
        steps.sort(key=lambda step: (-step[2], step[0]))
        return Choices(
            item=np.repeat(np.arange(len(items), dtype=np.int64), counts),
            size=np.array([size for size, _ in flat], np.int64),
            cost=np.array([cost for _, cost in flat], np.float64),
            first=first,
            step=np.array([choice for choice, _, _ in steps], np.int64),
            step_size=np.array([size for _, size, _ in steps], np.int64),
            step_rate=np.array([rate for _, _, rate in steps], np.float64),
        )

    @property
    def smallest(self) -> Ints:
        """Each item's smallest choice."""
        return self.first[:-1]

    def total(self, chosen: Ints) -> float:
        """Summed cost."""
        return math.fsum(self.cost[chosen])

    def changed(self, chosen: Ints, to: Ints) -> Ints:
        """`chosen`, but for the items that `to` has choices of."""
        chosen = chosen.copy()
        chosen[self.item[to]] = to
        return chosen


def _hull(first: int, choices: Sequence[tuple[int, float]]) -> list[tuple[int, int, float]]:
    """(choice, size, rate) of the steps from an item's smallest choice to its largest."""
    kept: list[int] = []
    steps: list[tuple[int, int, float]] = []
    for number, (size, cost) in enumerate(choices):
        while kept:
            last_size, last_cost = choices[kept[-1]]
            rate = (last_cost - cost) / (size - last_size)
            if not steps or rate < steps[-1][2]:
                steps.append((first + number, size - last_size, rate))
                break
            kept.pop()
            steps.pop()
        kept.append(number)
    return steps


@dataclass(frozen=True)
class Limits:
    """Which sizes must not be exceeded: by the items of each group, and by all items."""

    group: Ints
    groups: tuple[int, ...]
    total: int = UNLIMITED

    @staticmethod
    def of_all(choices: Choices, total: int) -> Limits:
        """One group of all items."""
        return Limits(np.zeros(len(choices.smallest), np.int64), (total,))

    def left(self, choices: Choices, chosen: Ints) -> tuple[Ints, int]:
        """What the choices leave of each group's limit and of the total; negative: too much."""
        sizes = choices.size[chosen]
        used = np.zeros(len(self.groups), np.int64)
        np.add.at(used, self.group, sizes)
        return np.array(self.groups, np.int64) - used, self.total - int(sizes.sum())

    def hold(self, choices: Choices, chosen: Ints) -> bool:
        """Whether the choices exceed no limit."""
        groups, total = self.left(choices, chosen)
        return total >= 0 and bool((groups >= 0).all())


@dataclass(frozen=True)
class Solution:
    """A choice for every item, and a proven bound: no solution costs less."""

    chosen: Ints
    cost: float
    bound: float


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


@dataclass
class Work:
    """What a search may still do, in pairs of states; with none it takes the relaxation, filled."""

    left: int = WORK


@dataclass(frozen=True)
class _States:
    """Ways to choose for some items: of those that are no larger than another, the cheaper ones.

    Attributes:
        size, cost: of each state, beyond those of the relaxation.
        choice: of each state, of a single item.
        parts: the states that these were joined from, and which of them each consists of.
        dropped: no state that was not kept costs less.
    """

    size: Ints
    cost: Floats
    choice: Ints | None = None
    parts: tuple[tuple[_States, Ints], ...] = ()
    dropped: float = math.inf

    def choices(self, at: int) -> Ints:
        """The choices of a state."""
        found, open_ = [], [(self, at)]
        while open_:
            states, at = open_.pop()
            if states.choice is not None:
                found.append(states.choice[at])
            open_ += [(part, int(index[at])) for part, index in states.parts]
        return np.array(found, np.int64)

    def joined(
        self,
        other: _States,
        price: float,
        room: int,
        rest: tuple[Ints, Floats],
        reach: float,
        most: int,
        work: Work,
    ) -> _States:
        """Each with each of `other`, as far as they can be part of a solution within `reach`.

        Args:
            price: of a unit of size; costs contain it.
            rest: what the items still to come cost at least, by what is left of `room` for them:
                corners of a line over the sizes, the first of which they need.
            most: how many states to keep: the most promising of each range of sizes.
        """
        work.left -= len(self.size) * len(other.size) + PER_JOIN
        size = (self.size[:, None] + other.size).ravel()
        cost = (self.cost[:, None] + other.cost).ravel()
        left = room - size
        at = np.flatnonzero((left >= rest[0][0]) & (cost <= reach))
        least = cost[at] + np.interp(left[at], *rest)
        at, least = at[least <= reach], least[least <= reach]
        own_cost = cost[at] - price * size[at]
        order = np.lexsort((own_cost, size[at]))
        cheapest = np.minimum.accumulate(own_cost[order])
        order = order[np.diff(cheapest, prepend=math.inf) < 0]
        at, least = at[order], least[order]
        dropped = min(self.dropped, other.dropped)
        most = max(1, min(most, work.left // 64))  # so the last passes stay within the work too
        if len(at) > most:
            step = -(-len(at) // most)
            ranges = np.pad(least, (0, -len(at) % step), constant_values=math.inf)
            ranges = ranges.reshape(-1, step)
            best = ranges.argmin(axis=1)
            dropped = min(dropped, float(np.sort(ranges, axis=1)[:, 1].min()))
            at = at[np.arange(len(best)) * step + best]
        parts = ((self, at // len(other.size)), (other, at % len(other.size)))
        return _States(size[at], cost[at], None, parts, dropped)


_NOTHING = _States(np.zeros(1, np.int64), np.zeros(1))


class Group:
    """The items within one limit, when a unit of the total has a price.

    Attributes:
        chosen: by the relaxation, what it divides rounded down; of other items the smallest.
        used: size that the relaxation takes.
        bound: cost and price of the relaxation.
        least: any solution costs so much more than `bound`.
        settled: choices that cost no more than this, or `chosen`.
    """

    def __init__(
        self, choices: Choices, inside: NDArray[np.bool_], limit: int, total_price: float
    ) -> None:
        self.all = choices
        self.at = np.flatnonzero(inside[choices.item])
        self.steps = np.flatnonzero(inside[choices.item[choices.step]])
        worth = self.steps[choices.step_rate[self.steps] > total_price]
        room = limit - int(choices.size[choices.smallest[inside]].sum())
        sizes = choices.step_size[worth].cumsum()
        count = int(np.searchsorted(sizes, room, side="right"))
        self.room = room - int(sizes[count - 1]) if count else room
        divides = count < len(worth)
        self.price = float(choices.step_rate[worth[count]]) if divides else total_price
        self.own_price = self.price - total_price
        self.chosen = choices.smallest.copy()
        taken = choices.step[worth[:count]]
        np.maximum.at(self.chosen, choices.item[taken], taken)
        size = int(choices.size[self.chosen[inside]].sum())
        self.used = size + self.room * divides
        self.rounding = self.own_price * self.room  # what rounding down costs
        self.bound = choices.total(self.chosen[inside]) + total_price * size - self.rounding
        self.least = 0.0
        self.settled = self.chosen

    def states(self, reach: float, work: Work) -> _States:
        """The ways to choose that cost at most `reach` beyond the bound."""
        choices, at = self.all, self.at
        held = self.chosen[choices.item[at]]
        size = choices.size[at] - choices.size[held]
        cost = np.maximum(0.0, choices.cost[at] - choices.cost[held] + self.price * size)
        near = cost <= reach
        at, size, cost = at[near], size[near], cost[near]
        items = np.split(np.arange(len(at)), np.flatnonzero(np.diff(choices.item[at])) + 1)
        items = [item for item in items if len(item) > 1]
        items.sort(key=lambda item: int(size[item[0]] - size[item[-1]]))  # the widest first
        rank = np.full(len(self.chosen), -1)
        rank[[choices.item[at[item[0]]] for item in items]] = np.arange(len(items))
        smallest = choices.size[choices.smallest] - choices.size[self.chosen]
        step_rank = rank[choices.item[choices.step[self.steps]]]
        step_size = choices.step_size[self.steps]
        # a step is taken as long as that costs less than the room that it fills
        rise = step_size * np.minimum(self.price - choices.step_rate[self.steps], self.own_price)
        most = PAIRS // max(1, sum(map(len, items)))
        found = _NOTHING
        for number, item in enumerate(items):
            states = _States(size[item], cost[item], at[item])
            later = step_rank > number
            needed = np.cumsum([smallest[rank > number].sum(), *step_size[later], FAR])
            rest = np.cumsum([0.0, *rise[later], self.own_price * FAR])
            last = number == len(items) - 1
            found = found.joined(
                states,
                self.price,
                self.room,
                (needed, rest - rest.min()),
                reach,
                KEPT if last else most,
                work,
            )
        whole = found.cost
        if self.own_price > 0:
            whole = whole + self.own_price * (self.room - found.size)
        self.least = max(self.least, min(reach, found.dropped, float(whole.min(initial=math.inf))))
        return replace(found, cost=whole)

    def settle(self, work: Work) -> None:
        """Find `least`, and the choices that cost it."""
        reach = FIRST_REACH * self.rounding
        while self.rounding > 0 and work.left > 0:
            states = self.states(reach * (1 + TIE), work)
            if len(states.cost):
                cheapest = states.choices(int(np.argmin(states.cost)))
                self.settled = self.all.changed(self.chosen, cheapest)
            if len(states.cost) or states.dropped <= reach or reach >= self.rounding:
                break
            reach = min(FURTHER * reach, self.rounding)


def relaxed_groups(choices: Choices, limits: Limits) -> tuple[list[Group], float]:
    """The relaxation's groups and price of the total: the lowest at which it is not exceeded."""
    numbers = np.unique(limits.group).tolist()

    def at(price: float) -> list[Group]:
        return [Group(choices, limits.group == n, limits.groups[n], price) for n in numbers]

    def fit(groups: list[Group]) -> bool:
        return sum(group.used for group in groups) <= limits.total

    groups, price = at(0.0), 0.0
    if not fit(groups):
        low, high = 0, len(choices.step) - 1
        while low < high:
            middle = (low + high + 1) // 2
            fits = fit(at(float(choices.step_rate[middle])))
            low, high = (middle, high) if fits else (low, middle - 1)
        price = float(choices.step_rate[low])
        groups = at(price)
    return groups, price


def solve(
    choices: Choices, limits: Limits, gap: float = 0.0, work: Work | None = None
) -> Solution | None:
    """The least cost within the limits; None where not even the smallest choices are.

    Args:
        gap: a solution is good enough when no other costs less by more than this share.
    """
    if not limits.hold(choices, choices.smallest):
        return None
    work = work or Work()
    groups, price = relaxed_groups(choices, limits)
    relaxed = np.maximum.reduce([group.chosen for group in groups])
    bound = math.fsum(group.bound for group in groups) - price * limits.total
    best = _better(choices, limits, relaxed, None)
    enough = max(gap, ROUNDING)
    if best.cost - bound > enough * best.cost:
        for group in groups:
            group.settle(work)
        settled = np.maximum.reduce([group.settled for group in groups])
        if limits.hold(choices, settled):
            best = _better(choices, limits, settled, best)
    least = math.fsum(group.least for group in groups)
    proven = bound + least
    room = limits.left(choices, relaxed)[1]
    reach = FIRST_REACH * (best.cost - proven)
    while price > 0 and best.cost - proven > enough * best.cost and work.left > 0:
        found = _together(groups, price, room, least, least + reach, best.cost - bound, work)
        cost = found.cost + price * (room - found.size)
        if len(cost):
            chosen = choices.changed(relaxed, found.choices(int(np.argmin(cost))))
            best = _better(choices, limits, chosen, best)
        known = min(found.dropped, float(cost.min(initial=math.inf)))
        proven = bound + min(least + reach, known)
        if known <= least + reach or bound + least + reach >= best.cost:
            break
        reach = min(FURTHER * reach, best.cost - bound - least)
    return replace(best, bound=min(max(proven, bound + least), best.cost))


def _better(choices: Choices, limits: Limits, chosen: Ints, best: Solution | None) -> Solution:
    """The choices, filled up, or the best known."""
    chosen = fill(choices, limits, chosen)
    cost = choices.total(chosen)
    return Solution(chosen, cost, 0.0) if best is None or cost < best.cost else best


def _together(
    groups: Sequence[Group],
    price: float,
    room: int,
    least: float,
    reach: float,
    most: float,
    work: Work,
) -> _States:
    """States of all groups that fit together.

    Args:
        room: what the relaxation, rounded down, leaves of the total.
        least: of all groups.
        reach: within which no state is missing, unless it is among the dropped.
        most: how much a solution that is known costs beyond the bound.
    """
    every = [group.states((reach - least + group.least) * (1 + TIE), work) for group in groups]
    lows = np.array([states.size.min(initial=FAR) for states in every], np.int64)
    highs = np.array([states.size.max(initial=-FAR) for states in every], np.int64)
    found, after = _NOTHING, least
    dropped = min(s.dropped + least - group.least for s, group in zip(every, groups, strict=True))
    for number, (group, states) in enumerate(zip(groups, every, strict=True), 1):
        after -= group.least
        low, high = int(lows[number:].sum()), int(highs[number:].sum())
        rest = np.array([low, high, high + FAR]), np.array([0.0, 0.0, price * FAR])
        own = replace(states, dropped=math.inf)
        found = found.joined(own, price, room, rest, most - after, KEPT, work)
    return replace(found, dropped=min(dropped, found.dropped))
