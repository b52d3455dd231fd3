"""Where to cut the layers between GPUs, solved together with the choices of the items in them.

GPUs take contiguous layers in order. For a price μ of the total, the linear relaxation of what a
GPU can do with layers a … b is known in closed form from cumulated steps, for all a, b at once; a
dynamic program over the cuts sums it up. That bounds all solutions from below (a Lagrangian dual,
the best μ is looked for), and it lists the ways to cut in the order of their bounds. Each way that
could still beat the best solution is then solved as a knapsack, until the next one cannot.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.plan.solver.knapsack import (
    UNLIMITED,
    Choices,
    Floats,
    Ints,
    Limits,
    Solution,
    fill,
    relax,
)
from quantkit.plan.solver.search import solve

MOST_RELAXED, MOST_SOLVED = 20_000, 50
"""Ways to cut that are looked at, and that HiGHS solves, before the gap is left as it is."""
TIE = 1e-9
"""Bounds that differ by less, relative, count as equal."""


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

    def limits(self, counts: Sequence[int], total: int) -> Limits | None:
        """The limits when the GPUs get `counts` layers; None when `kept` exceeds a room."""
        ends = np.cumsum(counts)
        kept = np.concatenate([[0], np.cumsum(self.kept)])
        left = [
            room - int(kept[end] - kept[end - count]) if count else room
            for room, end, count in zip(self.room, ends, counts, strict=True)
        ]
        if any(n < 0 for n, count in zip(left, counts, strict=True) if count):
            return None
        gpu = np.searchsorted(ends, self.layer, side="right")
        group = np.where(self.layer < 0, len(self.room), gpu).astype(np.int64)
        return Limits(group, (*(max(n, 0) for n in left), UNLIMITED), total)

    def counts(self, choices: Choices, chosen: Ints) -> list[int]:
        """Layers of each GPU such that the fullest has the most left."""
        load = np.array(self.kept, np.int64)
        on_gpu = self.layer >= 0
        np.add.at(load, self.layer[on_gpu], choices.size[chosen][on_gpu])
        return contiguous_counts(load.tolist(), self.room)

    def hold(self, choices: Choices, chosen: Ints) -> bool:
        """Whether there is a way to cut in which every GPU holds its layers."""
        limits = self.limits(self.counts(choices, chosen), UNLIMITED)
        return limits is not None and bool((limits.left(choices, chosen)[0] >= 0).all())


class _Segments:
    """The relaxation of every GPU with every run of layers, for any price of the total.

    Sizes and gains count from each item's smallest choice.
    """

    def __init__(self, choices: Choices, gpus: GPUs) -> None:
        layers, steps = len(gpus.kept), choices.steps
        at = np.array([gpus.layer[step.item] for step in steps], np.int64)
        self.rate = np.array([step.rate for step in steps])
        sizes = np.zeros((layers + 1, len(steps) + 1), np.int64)
        gains = np.zeros((layers + 1, len(steps) + 1))
        on_gpu, column = at >= 0, np.arange(1, len(steps) + 1)
        sizes[at[on_gpu] + 1, column[on_gpu]] = np.array([s.size for s in steps])[on_gpu]
        gains[at[on_gpu] + 1, column[on_gpu]] = np.array([s.gain for s in steps])[on_gpu]
        # [b, i]: of the layers before b, the first i steps
        self.sizes = sizes.cumsum(axis=0).cumsum(axis=1)
        self.gains = gains.cumsum(axis=0).cumsum(axis=1)
        self.host_sizes = np.concatenate(
            [[0], np.cumsum([0 if c else s.size for s, c in zip(steps, on_gpu, strict=True)])]
        )
        self.host_gains = np.concatenate(
            [[0.0], np.cumsum([0.0 if c else s.gain for s, c in zip(steps, on_gpu, strict=True)])]
        )
        kept = np.array(gpus.kept, np.int64)
        np.add.at(kept, gpus.layer[gpus.layer >= 0], choices.smallest[gpus.layer >= 0])
        held = np.concatenate([[0], kept.cumsum()])
        self.first, self.last = np.triu_indices(layers + 1)
        needed = held[self.last] - held[self.first]
        self.layers = layers
        self.full: list[tuple[Ints, Ints, Floats]] = [
            self._full(room - needed) for room in gpus.room
        ]

    def _full(self, room: Ints) -> tuple[Ints, Ints, Floats]:
        """Of each run of layers: how many steps fit, the room, and the gain when it is full."""
        low = np.zeros(len(room), np.int64)
        high = np.full(len(room), len(self.rate), np.int64)
        a, b = self.first, self.last
        while (low < high).any():
            middle = (low + high + 1) // 2
            fits = self.sizes[b, middle] - self.sizes[a, middle] <= room
            low, high = np.where(fits, middle, low), np.where(fits, high, middle - 1)
        rest = room - (self.sizes[b, low] - self.sizes[a, low])
        rate = np.append(self.rate, 0.0)[low]
        return low, room, self.gains[b, low] - self.gains[a, low] + rate * rest

    def values(self, price: float) -> Iterator[tuple[Floats, Ints]]:
        """For each GPU [a, b]: the least cost and price of what it holds, and that size."""
        steps = int(np.searchsorted(-self.rate, -price, side="left"))
        a, b = self.first, self.last
        size = self.sizes[b, steps] - self.sizes[a, steps]
        gain = self.gains[b, steps] - self.gains[a, steps]
        for most, room, gain_full in self.full:
            binds = most < steps
            used = np.where(binds, room, size)
            value = price * used - np.where(binds, gain_full, gain)
            value = np.where((room < 0) & (a < b), np.inf, value)
            table = np.full((self.layers + 1, self.layers + 1), np.inf)
            sizes = np.zeros((self.layers + 1, self.layers + 1), np.int64)
            table[a, b], sizes[a, b] = np.where(a == b, 0.0, value), np.where(a == b, 0, used)
            yield table, sizes

    def host(self, price: float) -> tuple[float, int]:
        """The same of the items that lie on no GPU."""
        steps = int(np.searchsorted(-self.rate, -price, side="left"))
        size = int(self.host_sizes[steps])
        return price * size - float(self.host_gains[steps]), size


@dataclass(frozen=True)
class _Dual:
    """The Lagrangian dual at a price: its value, and what each GPU's rest costs at least.

    Attributes:
        tables: of each GPU, [a, b] as `_Segments.values` gives them.
        rest: of each GPU [a], the least of it and those after it when it begins at layer a.
        constant: what is the same for all cuts.
    """

    tables: tuple[Floats, ...]
    rest: tuple[Floats, ...]
    constant: float
    used: int

    @property
    def bound(self) -> float:
        return float(self.rest[0][0]) + self.constant


def _dual(segments: _Segments, price: float, base: float, total: int) -> _Dual:
    tables, sizes = zip(*segments.values(price), strict=True)
    rest = [np.where(np.arange(segments.layers + 1) == segments.layers, 0.0, np.inf)]
    for table in reversed(tables):
        rest.append((table + rest[-1][None, :]).min(axis=1))
    rest.reverse()
    host, used = segments.host(price)
    at = 0
    for table, size, after in zip(tables, sizes, rest[1:], strict=True):
        to = int(np.argmin(table[at] + after))
        used, at = used + int(size[at, to]), to
    return _Dual(tuple(tables), tuple(rest), base + host - price * total, used)


def _best_dual(segments: _Segments, base: float, total: int) -> _Dual:
    """At the lowest price at which no more than the total is used, or the one before it."""
    free = _dual(segments, 0.0, base, total)
    if free.used <= total or math.isinf(free.bound):
        return free
    low, high, best = 0, len(segments.rate), free
    while low < high:
        middle = (low + high) // 2
        found = _dual(segments, float(segments.rate[middle]), base, total)
        best = max(best, found, key=lambda dual: dual.bound)
        low, high = (middle + 1, high) if found.used <= total else (low, middle)
    return best


def _ways(dual: _Dual) -> Iterator[tuple[float, tuple[int, ...]]]:
    """All ways to cut, as layers of each GPU, with their bounds, the lowest bound first.

    Bounds are rounded down, so that among many that differ by rounding the first is found at once.
    """
    unit = TIE * abs(dual.bound) or 1.0
    layers = len(dual.rest[0]) - 1
    heap: list[tuple[int, int, float, tuple[int, ...]]] = [(0, 0, 0.0, (0,))]
    while heap:
        bound, depth, cost, ends = heapq.heappop(heap)
        if -depth == len(dual.tables):
            yield bound * unit, tuple(np.diff(ends).tolist())
            continue
        at = ends[-1]
        costs = cost + dual.tables[-depth][at]
        for end in range(at, layers + 1):
            whole = float(costs[end] + dual.rest[1 - depth][end]) + dual.constant
            if not math.isinf(whole):
                entry = (math.floor(whole / unit), depth - 1, float(costs[end]), (*ends, end))
                heapq.heappush(heap, entry)


def solve_on_gpus(choices: Choices, gpus: GPUs, total: int, gap: float) -> Solution:
    """The least cost of all ways to cut the layers, and the bound that proves it.

    Args:
        total: limit of all sizes.
        gap: how far from the bound a solution may stay, relative.
    """
    segments = _Segments(choices, gpus)
    base = choices.total(choices.first[:-1])
    dual = _best_dual(segments, base, total - int(choices.smallest.sum()))
    if math.isinf(dual.bound):
        return Solution(None, math.inf, math.inf)
    together = Limits.of_all(choices, total)
    without = relax(choices, together)
    if without is not None and dual.bound <= without.bound + gap * abs(without.bound):
        found = solve(choices, together, gap)
        if found.chosen is not None and gpus.hold(choices, found.chosen):
            return found  # the GPUs do not bind
    return _search_cuts(choices, gpus, total, gap, _ways(dual))


def _search_cuts(
    choices: Choices,
    gpus: GPUs,
    total: int,
    gap: float,
    ways: Iterator[tuple[float, tuple[int, ...]]],
) -> Solution:
    """Relax and then solve the ways to cut in the order of their bounds, while one could be best.

    After MOST_RELAXED or MOST_SOLVED of them the gap is what it is.
    """
    best = Solution(None, math.inf, math.inf)
    proven = math.inf  # the lowest bound of the ways that are done with
    relaxed: list[tuple[float, tuple[int, ...]]] = []
    coming = next(ways, None)
    looked, solved = 0, 0
    while coming is not None or relaxed:
        lowest = min(way[0] for way in (coming, *relaxed[:1]) if way is not None)
        # of near ties the one that is relaxed already: it may turn out to be the best
        to_relax = coming is not None and not (
            relaxed and relaxed[0][0] <= coming[0] + gap / 2 * abs(coming[0])
        )
        spent = looked == MOST_RELAXED if to_relax else solved == MOST_SOLVED
        if spent or lowest >= best.cost * (1 - gap):
            proven = min(proven, lowest)
            break
        if coming is not None and to_relax:
            looked += 1
            limits = gpus.limits(coming[1], total)
            relaxation = None if limits is None else relax(choices, limits)
            if limits is not None and relaxation is not None:
                heapq.heappush(relaxed, (max(relaxation.bound, coming[0]), coming[1]))
                chosen = fill(choices, limits, relaxation.chosen)
                if (cost := choices.total(chosen)) < best.cost:
                    best = Solution(chosen, cost, 0.0)
            coming = next(ways, None)
            continue
        solved += 1
        bound, counts = heapq.heappop(relaxed)
        limits = gpus.limits(counts, total)
        assert limits is not None  # it was relaxed
        found = solve(choices, limits, gap, best.cost)
        proven = min(proven, max(bound, found.bound))
        if found.chosen is not None:
            best = found
    return replace(best, bound=min(proven, best.cost))


def contiguous_counts(load: Sequence[int], room: Sequence[int]) -> list[int]:
    """Layers for each GPU, in order, that maximise the smallest remaining room.

    Exact by dynamic programming over (GPU, first layers given away). The output, as the last
    layer, stays on a GPU with at least one layer.
    """
    prefix = np.concatenate([[0], np.cumsum(np.asarray(load, np.int64))])
    layers = len(load)
    held = prefix[None, :] - prefix[:, None]  # [start, stop]
    starts, stops = np.tril_indices(layers + 1)  # runs that would end before they begin, or empty
    best = np.full(layers + 1, -(1 << 62), np.int64)
    best[0] = 1 << 62
    choices = []
    for space in room:
        left = space - held
        left[starts, stops] = -(1 << 62)
        np.fill_diagonal(left, 1 << 62)  # a GPU without layers cannot overflow
        scores = np.minimum(best[:, None], left)
        choices.append(scores.argmax(axis=0))
        best = scores.max(axis=0)
    counts = []
    stop = layers
    for choice in reversed(choices):
        start = int(choice[stop])
        counts.append(stop - start)
        stop = start
    return counts[::-1]


def counts_in_order(load: Sequence[int], room: Sequence[int]) -> list[int]:
    """Layers for each GPU when each is filled before the next gets any.

    Where the layers cannot be held so, they are spread as `contiguous_counts` does.
    """
    counts, at = [], 0
    for space in room:
        first, held = at, 0
        while at < len(load) and held + load[at] <= space:
            held += load[at]
            at += 1
        counts.append(at - first)
    return counts if at == len(load) else contiguous_counts(load, room)
