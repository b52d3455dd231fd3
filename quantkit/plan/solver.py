"""A multiple-choice knapsack under nested limits, solved to a proven bound; no tensors.

Every item gets exactly one of its choices, at the least summed cost. Sizes are integers, costs are
not. Items lie in groups with a limit each, and all together have a limit. The groups may be given,
or be GPUs that take contiguous layers in order, and then where to cut is part of the question.

A linear relaxation gives a bound, prices of the limits, and what each choice costs at them beyond
the cheapest of its item. A dynamic program then lists the ways to choose that cost little beyond
the bound; the cheapest of them that fits is the optimum.

Every search ends, whatever the costs: its work is limited by counts, and not by seconds, so the
same input gives the same result. Where the limit is met, the best that was found is the result, and
the bound says how far from the optimum it may be. Items of equal cost are what meets it: no bound
tells their many ways to choose apart.

At a price of the total, what a GPU costs depends on its own layers alone. So a dynamic program over
the cuts bounds all ways to cut from below: first by the relaxations of all runs of layers, then by
the solutions of those runs that the best ways consist of. The best ways are solved whole.
"""

from __future__ import annotations

import abc
import bisect
import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.core.progress import SILENT, Progress

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNLIMITED = 1 << 62
WORK, PER_JOIN = 6_000_000, 500
"""Pairs of states that one search may join, about a second; each join counts as PER_JOIN more, and
a relaxation as PER_JOIN and its choices."""
SEARCH = ("steps", "choosing types")
"""What progress calls the work."""
PAIRS = 1 << 21
"""Pairs that one pass over a group may join; decides how many states it keeps at once."""
KEPT = 1024
"""States of a group, and of groups together, that are kept."""
REACHES = (1 / 64, 1 / 16, 1 / 4, 1.0)
"""How near to the bound the passes look, as a share of what is open before the first."""
MOST_CUTS = 16
"""Ways to cut the layers that are solved, and that are tried at once before."""
PRICES = 256
"""Prices for which every run of layers is relaxed at once."""
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
        steps = [
            (-rate, start + at, size)
            for start, choices in starts
            for at, size, rate in _hull(choices)
        ]
        steps.sort()
        return Choices(
            item=np.repeat(np.arange(len(items), dtype=np.int64), counts),
            size=np.array([size for size, _ in flat], np.int64),
            cost=np.array([cost for _, cost in flat], np.float64),
            first=first,
            step=np.array([choice for _, choice, _ in steps], np.int64),
            step_size=np.array([size for _, _, size in steps], np.int64),
            step_rate=np.array([-rise for rise, _, _ in steps], np.float64),
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


def _hull(points: Iterable[tuple[int, float]]) -> list[tuple[int, int, float]]:
    """Steps along the lower convex hull of (size, cost) by rising size: (point, size, rate)."""
    kept: list[tuple[int, int, float]] = []
    steps: list[tuple[int, int, float]] = []
    for number, (size, cost) in enumerate(points):
        while kept:
            _, last_size, last_cost = kept[-1]
            rate = (last_cost - cost) / (size - last_size)
            if not steps or rate < steps[-1][2]:
                steps.append((number, size - last_size, rate))
                break
            kept.pop()
            steps.pop()
        kept.append((number, size, cost))
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

    left: int
    progress: Progress = SILENT

    def spend(self, pairs: int) -> None:
        """So many pairs are joined now."""
        self.left -= pairs
        self.progress.advance(pairs)


@dataclass(frozen=True)
class _States:
    """Ways to choose for some items: of those that are no larger than another, the cheaper ones.

    Attributes:
        size, cost: of each state, beyond those of the relaxation.
        chosen: the choices of each state, a row each.
        least: no way to choose costs less.
        dropped: none that is missing here costs less.
    """

    size: Ints
    cost: Floats
    chosen: Ints
    least: float = 0.0
    dropped: float = math.inf


class _Node(abc.ABC):
    """Parts that share a limit: the items of a group, or all groups.

    Attributes:
        price: of a unit of size; the costs of the parts' states contain it.
        slack_price: of a unit of the limit that is left.
        room: what the relaxation, rounded down, leaves of the limit.
        cost: what the cheapest known solution costs more than the relaxation.
        best: the choices in which it differs from the relaxation, rounded down.
        least: any solution costs so much more than the relaxation.
        beyond: whether some states beyond the reach are found too.
    """

    beyond = False

    def __init__(self, price: float, slack_price: float, room: int, cost: float) -> None:
        self.price, self.slack_price, self.room, self.cost = price, slack_price, room, cost
        self.best, self.least = np.zeros(0, np.int64), 0.0

    @abc.abstractmethod
    def parts(self, reach: float, work: Work) -> list[_States]:
        """The states of each part that can belong to one that costs at most `reach`."""

    def states(self, reach: float, work: Work) -> _States:
        """The ways to choose that cost at most `reach`: the parts' states, joined one by one."""
        parts = self.parts(reach, work)
        most = max(reach, self.cost) if self.beyond else reach
        pairs = PAIRS // max(1, sum(len(part.size) for part in parts))
        steps = sorted(
            (-rate, number, size)
            for number, part in enumerate(parts)
            for _, size, rate in _hull(zip(part.size.tolist(), part.cost.tolist(), strict=True))
        )
        of = np.array([number for _, number, _ in steps], np.int64)
        rise = np.array([size * min(rate, self.slack_price) for rate, _, size in steps])
        widths = np.array([size for _, _, size in steps], np.int64)
        first_size = [int(part.size[:1].sum()) for part in parts]
        first_cost = [float(part.cost[:1].sum()) for part in parts]
        least = math.fsum(part.least for part in parts)
        dropped = [part.dropped + least - part.least for part in parts]
        size, cost = np.zeros(1, np.int64), np.zeros(1)
        chosen = np.zeros((1, 0), np.int64)
        for number, part in enumerate(parts, 1):
            work.spend(len(size) * len(part.size) + PER_JOIN + len(steps))
            sizes = (size[:, None] + part.size).ravel()
            costs = (cost[:, None] + part.cost).ravel()
            left = self.room - sizes
            later = of >= number
            needed = np.cumsum(np.r_[sum(first_size[number:]), widths[later], FAR])
            rest = np.cumsum(np.r_[sum(first_cost[number:]), rise[later], self.slack_price * FAR])
            lowest = costs + np.interp(left, needed, rest)
            at = np.flatnonzero((left >= needed[0]) & (lowest <= most))
            own_cost = costs[at] - self.price * sizes[at]
            order = np.lexsort((own_cost, sizes[at]))
            cheapest = np.minimum.accumulate(own_cost[order])
            at = at[order[np.diff(cheapest, prepend=math.inf) < 0]]
            kept = pairs if number < len(parts) else KEPT
            kept = max(1, min(kept, work.left // 64))  # so the last passes stay within the work too
            if len(at) > kept:  # of each range of sizes, the most promising is
                step = -(-len(at) // kept)
                padded = np.pad(lowest[at], (0, -len(at) % step), constant_values=math.inf)
                ranges = padded.reshape(-1, step)
                dropped.append(float(np.sort(ranges, axis=1)[:, 1].min()))
                at = at[np.arange(len(ranges)) * step + ranges.argmin(axis=1)]
            size, cost = sizes[at], costs[at]
            own, others = np.divmod(at, len(part.size))
            chosen = np.hstack([chosen[own], part.chosen[others]])
        cost = cost + self.slack_price * (self.room - size)
        found, missing = float(cost.min(initial=math.inf)), min(dropped, default=math.inf)
        self.least = max(self.least, min(reach, missing, found))
        if found <= self.cost:
            self.cost, self.best = found, chosen[cost.argmin()]
        return _States(size, cost, chosen, self.least, missing)

    def settle(self, work: Work) -> None:
        """Find `least`, and choices that cost it."""
        least, open_cost = self.least, self.cost - self.least
        for share in REACHES:
            if self.cost <= least or work.left <= 0:
                break
            reach = min(share * open_cost, self.cost - least)
            dropped = self.states((least + reach) * (1 + TIE), work).dropped
            if min(dropped, self.cost) <= least + reach:
                break


class _Group(_Node):
    """The items within one limit, when a unit of the total has a price.

    Attributes:
        chosen: by the relaxation, rounded down what it divides; of other items the smallest.
        used: size that the relaxation takes.
        bound: cost and price of the relaxation.
    """

    def __init__(
        self, choices: Choices, inside: NDArray[np.bool_], limit: int, total_price: float
    ) -> None:
        worth = inside[choices.item[choices.step]] & (choices.step_rate > total_price)
        rates, steps = choices.step_rate[worth], choices.step[worth]
        sizes = np.concatenate([[0], choices.step_size[worth].cumsum()])
        room = limit - int(choices.size[choices.smallest[inside]].sum())
        count = int(np.searchsorted(sizes[1:], room, side="right"))
        divides = count < len(steps)
        price = float(rates[count]) if divides else total_price
        room -= int(sizes[count])
        own_price = price - total_price
        super().__init__(price, own_price, room, own_price * room)  # what rounding down costs
        self.choices, self.inside = choices, inside
        self.chosen = choices.smallest.copy()
        np.maximum.at(self.chosen, choices.item[steps[:count]], steps[:count])
        size = int(choices.size[self.chosen[inside]].sum())
        self.used = size + room * divides
        self.bound = choices.total(self.chosen[inside]) + total_price * size - self.cost

    def parts(self, reach: float, work: Work) -> list[_States]:
        choices = self.choices
        held = self.chosen[choices.item]
        size = choices.size - choices.size[held]
        cost = np.maximum(0.0, choices.cost - choices.cost[held] + self.price * size)
        near = np.flatnonzero(self.inside[choices.item] & (cost <= reach))
        items = np.split(near, np.flatnonzero(np.diff(choices.item[near])) + 1)
        found = [_States(size[at], cost[at], at[:, None]) for at in items if len(at) > 1]
        return sorted(found, key=lambda item: int(item.size[0] - item.size[-1]))  # the widest first


class _Total(_Node):
    """The groups within the total, when a unit of it has a price."""

    beyond = True

    def __init__(self, groups: Sequence[_Group], price: float, room: int, cost: float) -> None:
        super().__init__(price, price, room, cost)
        self.groups = groups
        self.least = math.fsum(group.least for group in groups)

    def parts(self, reach: float, work: Work) -> list[_States]:
        spare = reach - math.fsum(group.least for group in self.groups)
        return [group.states((spare + group.least) * (1 + TIE), work) for group in self.groups]


def solve(
    choices: Choices, limits: Limits, gap: float = 0.0, work: Work | None = None
) -> Solution | None:
    """The least cost within the limits; None where not even the smallest choices are.

    Args:
        gap: a solution is good enough when no other costs less by more than this share.
    """
    if not limits.hold(choices, choices.smallest):
        return None
    work = work or Work(WORK)
    insides = [(limits.group == n, limits.groups[n]) for n in np.unique(limits.group).tolist()]

    def relaxed(price: float) -> list[_Group]:
        return [_Group(choices, inside, limit, price) for inside, limit in insides]

    def exceeds(groups: list[_Group]) -> bool:
        return sum(group.used for group in groups) > limits.total

    groups, price = relaxed(0.0), 0.0
    if exceeds(groups):  # the total has the lowest price at which it is not exceeded
        at = bisect.bisect(choices.step_rate[1:], False, key=lambda rate: exceeds(relaxed(rate)))
        price = float(choices.step_rate[at])
        groups = relaxed(price)
    rounded = np.maximum.reduce([group.chosen for group in groups])
    bound = math.fsum(group.bound for group in groups) - price * limits.total
    best, enough = fill(choices, limits, rounded), 1 - max(gap, ROUNDING)
    least = 0.0
    if bound < enough * choices.total(best):
        for group in groups:
            group.settle(work)
        settled = choices.changed(rounded, np.concatenate([group.best for group in groups]))
        best = _better(choices, limits, settled, best)
        room, open_cost = limits.left(choices, rounded)[1], choices.total(best) - bound
        total = _Total(groups, price, room, open_cost)
        if price > 0 and bound + total.least < enough * choices.total(best):
            total.settle(work)
            best = _better(choices, limits, choices.changed(rounded, total.best), best)
        least = total.least
    cost = choices.total(best)
    return Solution(best, cost, min(bound + least, cost))


def _better(choices: Choices, limits: Limits, chosen: Ints, best: Ints) -> Ints:
    """The choices, filled up, or the best known."""
    if not limits.hold(choices, chosen):
        return best
    return min(best, fill(choices, limits, chosen), key=choices.total)


@dataclass(frozen=True)
class GPUs:
    """What the items are placed on, in sizes.

    Attributes:
        layer: of each item, counted from 0; -1 for items that lie on no GPU.
        kept: size that each layer needs beside its items.
        room: of each GPU.
    """

    layer: Ints
    kept: tuple[int, ...]
    room: tuple[int, ...]

    def limits(self, counts: Sequence[int], total: int) -> Limits:
        """The limits when the GPUs get `counts` layers; one without layers may lack any room."""
        ends = np.cumsum(counts)
        kept = np.concatenate([[0], np.cumsum(self.kept)])
        left = np.where(counts, self.room - kept[ends] + kept[ends - counts], UNLIMITED)
        gpu = np.searchsorted(ends, self.layer, side="right")
        group = np.where(self.layer < 0, len(self.room), gpu).astype(np.int64)
        return Limits(group, (*left.tolist(), UNLIMITED), total)

    def cut_for(self, choices: Choices, chosen: Ints, total: int) -> Limits:
        """The limits when the layers are cut such that the fullest GPU has the most left.

        They hold the choices if any way to cut does.
        """
        load = np.array(self.kept, np.int64)
        on_gpu = self.layer >= 0
        np.add.at(load, self.layer[on_gpu], choices.size[chosen][on_gpu])
        return self.limits(contiguous_counts(load.tolist(), self.room), total)


class _Cuts:
    """What each GPU costs at least with each run of layers, at a price of the total.

    Attributes:
        price: at which all ways to cut have the highest bound.
        constant: costs of the bound that are the same for all of them.
        tables: by the size of a GPU's room, its costs for layers [from, to].
    """

    def __init__(self, choices: Choices, gpus: GPUs, total: int) -> None:
        self.choices, self.gpus, self.solved = choices, gpus, set[tuple[int, int, int]]()
        rates = np.unique(choices.step_rate)
        rates = rates[np.diff(rates, prepend=0.0) > TIE * rates]
        some = np.linspace(0, len(rates) - 1, min(PRICES, len(rates))).astype(np.int64)
        prices = np.concatenate([[0.0], rates[some]])
        least = np.minimum.reduceat(
            choices.cost + prices[:, None] * choices.size, choices.smallest, axis=1
        )
        constants = least[:, gpus.layer < 0].sum(axis=1) - prices * total
        on_layer = gpus.layer[:, None] == np.arange(len(gpus.kept))
        smallest = gpus.kept + choices.size[choices.smallest] @ on_layer
        needed, self.kept, runs = map(_of_runs, (smallest, np.array(gpus.kept), least @ on_layer))
        tables = {}
        for room in set(gpus.room):
            paid = prices[:, None, None] * (room - self.kept)
            # The price of a room may be any that is at least that of the total: the best for each.
            table = np.maximum.accumulate((runs - paid)[::-1], axis=0)[::-1] + paid
            table[:, (needed > room) | np.tri(len(needed), k=-1, dtype=bool)] = math.inf
            table[:, np.arange(len(needed)), np.arange(len(needed))] = 0.0
            tables[room] = table

        def bound(number: int) -> float:
            self.price, self.constant = float(prices[number]), float(constants[number])
            self.tables = {room: table[number] for room, table in tables.items()}
            return float(self.rest()[0][0]) + self.constant

        numbers = range(len(prices) - 1)  # the bound is concave in the price
        bound(bisect.bisect_left(numbers, True, key=lambda n: bound(n) >= bound(n + 1)))

    def rest(self) -> list[Floats]:
        """By GPU and first layer, the least cost of it and the GPUs after it."""
        layers = len(self.gpus.kept)
        rest = [np.where(np.arange(layers + 1) == layers, 0.0, math.inf)]
        for room in reversed(self.gpus.room):
            rest.insert(0, (self.tables[room] + rest[0]).min(axis=1))
        return rest

    def tighten(self, ends: Sequence[int], work: Work) -> bool:
        """Solve each run of layers of a way to cut alone; False where all were solved before."""
        runs = set(zip(self.gpus.room, ends, ends[1:], strict=False)) - self.solved
        runs = {(room, start, end) for room, start, end in runs if start < end}
        for room, start, end in sorted(runs):
            inside = (self.gpus.layer >= start) & (self.gpus.layer < end)
            work.spend(PER_JOIN + len(self.choices.item))
            group = _Group(self.choices, inside, room - int(self.kept[start, end]), self.price)
            group.settle(work)
            known = float(self.tables[room][start, end])
            self.tables[room][start, end] = max(known, group.bound + group.least)
        self.solved |= runs
        return bool(runs)

    def ways(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """All ways to cut, as the layers where GPUs begin and end; the lowest bound first.

        Each takes a step for each GPU and no search: a beginning is completed in the cheapest way,
        and all others that leave that way wait with their bounds. Bounds are rounded down, so that
        those that differ by rounding are equal.
        """
        rest = self.rest()
        unit = TIE * abs(float(rest[0][0]) + self.constant) or 1.0
        heap: list[tuple[int, int, float, tuple[int, ...]]] = [(0, 0, 0.0, (0,))]
        while heap:
            bound, depth, cost, ends = heapq.heappop(heap)
            for gpu in range(-depth, len(self.gpus.room)):
                costs = cost + self.tables[self.gpus.room[gpu]][ends[-1]]
                bounds = np.floor((costs + rest[gpu + 1] + self.constant) / unit)
                order = np.lexsort((costs, bounds))
                best, *others = order[np.isfinite(bounds[order])].tolist() or [-1]
                if best < 0:  # no way to cut holds the layers
                    break
                for end in others:
                    entry = (int(bounds[end]), -gpu - 1, float(costs[end]), (*ends, end))
                    heapq.heappush(heap, entry)
                bound, cost, ends = int(bounds[best]), float(costs[best]), (*ends, best)
            else:
                yield bound * unit, ends


def _of_runs(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of the last axis over each run [from, to]."""
    sums = np.pad(values.cumsum(axis=-1), [(0, 0)] * (values.ndim - 1) + [(1, 0)])
    runs: NDArray[Any] = sums[..., None, :] - sums[..., :, None]
    return runs


def fill_gpus(choices: Choices, gpus: GPUs, total: int) -> Solution | None:
    """A solution that fills the total and the GPUs, found at once; None where there is none.

    The layers are cut for the smallest choices, then again for what fills that cut, and so on.
    """
    found: Solution | None = None
    chosen = choices.smallest
    for _ in range(MOST_CUTS):
        better = solve(choices, gpus.cut_for(choices, chosen, total), work=Work(0))
        if better is None or (found is not None and better.cost >= found.cost):
            break
        found, chosen = better, better.chosen
    return found


def solve_on_gpus(
    choices: Choices, gpus: GPUs, total: int, gap: float = 0.0, progress: Progress = SILENT
) -> Solution | None:
    """The least cost of all ways to cut the layers; None where the GPUs do not hold them.

    Args:
        gap: as for `solve`.
        progress: of the work that a search may do; most do less.
    """
    best = fill_gpus(choices, gpus, total)
    progress.start(2 * WORK, *SEARCH)
    together = solve(choices, Limits.of_all(choices, total), gap, Work(WORK, progress))
    if best is None or together is None:
        return None
    if gpus.cut_for(choices, together.chosen, total).hold(choices, together.chosen):
        return together  # the GPUs do not bind
    cuts, work = _Cuts(choices, gpus, total), Work(WORK, progress)
    proven, done = math.inf, set[tuple[int, ...]]()
    while True:
        ways = ((max(low, together.bound), ends) for low, ends in cuts.ways() if ends not in done)
        lowest, ends = next(ways, (math.inf, ()))
        spent = len(done) == MOST_CUTS or (done and work.left <= 0)
        if spent or lowest >= best.cost * (1 - gap - 2 * TIE):
            return replace(best, bound=min(proven, lowest, best.cost))
        if work.left > 0 and cuts.tighten(ends, work):
            continue
        found = solve(choices, gpus.limits(np.diff(ends).tolist(), total), gap, work) or best
        done.add(ends)
        proven = min(proven, max(lowest, found.bound))
        best = min(best, found, key=lambda solution: solution.cost)


def contiguous_counts(load: Sequence[int], room: Sequence[int]) -> list[int]:
    """Layers for each GPU, in order, that maximise the smallest remaining room.

    Exact by dynamic programming over (GPU, first layers given away). The output, as the last
    layer, stays on a GPU with at least one layer.
    """
    prefix = np.concatenate([[0], np.cumsum(np.asarray(load, np.int64))])
    held = prefix - prefix[:, None]  # [start, stop]
    backwards = np.tril_indices(len(prefix), -1)
    best = np.full(len(prefix), -UNLIMITED, np.int64)
    best[0] = UNLIMITED
    choices = []
    for space in room:
        left = space - held
        left[backwards] = -UNLIMITED
        np.fill_diagonal(left, UNLIMITED)  # a GPU without layers cannot overflow
        scores = np.minimum(best[:, None], left)
        choices.append(scores.argmax(axis=0))
        best = scores.max(axis=0)
    ends = [len(load)]
    for choice in reversed(choices):
        ends.insert(0, int(choice[ends[0]]))
    return np.diff(ends).tolist()


def counts_in_order(load: Sequence[int], room: Sequence[int]) -> list[int]:
    """Layers for each GPU when each is filled before the next gets any.

    Where the layers cannot be held so, they are spread as `contiguous_counts` does.
    """
    counts, at = [], 0
    for space in room:
        held = np.cumsum(load[at:])
        counts.append(int(np.searchsorted(held, space, side="right")))
        at += counts[-1]
    return counts if at == len(load) else contiguous_counts(load, room)
