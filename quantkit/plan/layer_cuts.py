"""Where to cut the layers between GPUs, also together with the choices of the items in them.

GPUs take contiguous layers in order. At a price of the total, what a GPU costs depends on its own
layers alone. So a dynamic program over the cuts bounds all ways to cut from below: first by the
relaxations of all runs of layers, then by the solutions of those runs that the best ways consist
of. The best ways are solved whole.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.plan.solver import (
    TIE,
    UNLIMITED,
    Choices,
    Group,
    Ints,
    Limits,
    Solution,
    Work,
    solve,
)

MOST_CUTS = 16
"""Ways to cut the layers that are solved."""
PRICES = 256
"""Prices for which every run of layers is relaxed at once."""


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

    `tables` has it by the size of the GPU's room, for layers [from, to].
    """

    def __init__(self, choices: Choices, gpus: GPUs, total: int) -> None:
        self.choices, self.gpus, self.total = choices, gpus, total
        layers = len(gpus.kept)
        rates = np.unique(choices.step_rate)
        rates = rates[np.diff(rates, prepend=0.0) > TIE * rates]
        some = np.linspace(0, len(rates) - 1, min(PRICES, len(rates))).astype(np.int64)
        self.prices = np.concatenate([[0.0], rates[some]])
        least = np.minimum.reduceat(
            choices.cost + self.prices[:, None] * choices.size, choices.smallest, axis=1
        )
        self.on_none = least[:, gpus.layer < 0].sum(axis=1)
        on_layer = gpus.layer[:, None] == np.arange(layers)
        kept = np.concatenate([[0], np.cumsum(gpus.kept)])
        needed = kept + np.concatenate([[0], np.cumsum(choices.size[choices.smallest] @ on_layer)])
        self.kept, self.needed = kept - kept[:, None], needed - needed[:, None]
        sums = np.pad((least @ on_layer).cumsum(axis=1), ((0, 0), (1, 0)))
        runs = sums[:, None, :] - sums[:, :, None]
        # The price of a room may be any that is at least that of the total: the best one for each.
        self.runs = {
            room: np.maximum.accumulate(
                (runs - self.prices[:, None, None] * (room - self.kept))[::-1], axis=0
            )[::-1]
            for room in set(gpus.room)
        }
        self.solved: set[tuple[int, int, int]] = set()
        low, high = 0, len(self.prices) - 1
        while low < high:  # the bound is concave in the price
            middle = (low + high) // 2
            rises = self._set_price(middle) < self._set_price(middle + 1)
            low, high = (middle + 1, high) if rises else (low, middle)
        self.bound = self._set_price(low)

    def _set_price(self, number: int) -> float:
        """The bound of all ways to cut at one of the prices."""
        self.price = float(self.prices[number])
        self.constant = float(self.on_none[number]) - self.price * self.total
        self.tables = {}
        for room, runs in self.runs.items():
            table = runs[number] + self.price * (room - self.kept)
            table[self.needed > room] = math.inf
            table[np.tril_indices(len(table), -1)] = math.inf
            np.fill_diagonal(table, 0.0)
            self.tables[room] = table
        return self._sum_up()

    def _sum_up(self) -> float:
        """Set `rest`: by GPU and first layer, the least cost of it and the GPUs after it."""
        self.rest = [np.where(np.arange(len(self.kept)) == len(self.kept) - 1, 0.0, math.inf)]
        for room in reversed(self.gpus.room):
            self.rest.insert(0, (self.tables[room] + self.rest[0]).min(axis=1))
        return float(self.rest[0][0]) + self.constant

    def tighten(self, ends: Sequence[int], work: Work) -> bool:
        """Solve each run of layers of a way to cut alone; False where all were solved before."""
        runs = set(zip(self.gpus.room, ends, ends[1:], strict=False)) - self.solved
        runs = {(room, start, end) for room, start, end in runs if start < end}
        for room, start, end in sorted(runs):
            inside = (self.gpus.layer >= start) & (self.gpus.layer < end)
            group = Group(self.choices, inside, room - int(self.kept[start, end]), self.price)
            group.settle(work)
            known = float(self.tables[room][start, end])
            self.tables[room][start, end] = max(known, group.bound + group.least)
        self.solved |= runs
        self._sum_up()
        return bool(runs)

    def ways(self) -> Iterator[tuple[float, tuple[int, ...]]]:
        """All ways to cut, as the layers where GPUs begin and end; the lowest bound first.

        Bounds are rounded down, so that among many that differ by rounding the first is found at
        once.
        """
        unit = TIE * abs(float(self.rest[0][0]) + self.constant) or 1.0
        heap: list[tuple[int, int, float, tuple[int, ...]]] = [(0, 0, 0.0, (0,))]
        while heap:
            bound, depth, cost, ends = heapq.heappop(heap)
            if -depth == len(self.gpus.room):
                yield bound * unit, ends
                continue
            costs = cost + self.tables[self.gpus.room[-depth]][ends[-1]]
            bounds = np.floor((costs + self.rest[1 - depth] + self.constant) / unit)
            for end in np.flatnonzero(np.isfinite(bounds)).tolist():
                entry = (int(bounds[end]), depth - 1, float(costs[end]), (*ends, end))
                heapq.heappush(heap, entry)


def fill_gpus(choices: Choices, gpus: GPUs, total: int) -> Solution | None:
    """A solution that fills the total and the GPUs, found at once; None where there is none.

    The layers are cut for the smallest choices, then again for what fills that cut, and so on.
    """
    found: Solution | None = None
    chosen = choices.smallest
    while better := solve(choices, gpus.cut_for(choices, chosen, total), work=Work(0)):
        if found is not None and better.cost >= found.cost:
            break
        found, chosen = better, better.chosen
    return found


def solve_on_gpus(choices: Choices, gpus: GPUs, total: int, gap: float = 0.0) -> Solution | None:
    """The least cost of all ways to cut the layers; None where the GPUs do not hold them.

    Args:
        gap: as for `solve`.
    """
    best = fill_gpus(choices, gpus, total)
    together = Limits.of_all(choices, total)
    rough = solve(choices, together, work=Work(0))
    if best is None or rough is None:
        return None
    cuts, work, bound = _Cuts(choices, gpus, total), Work(), 0.0
    if cuts.bound <= rough.cost:  # the GPUs may not bind
        found = solve(choices, together, gap) or rough
        if gpus.cut_for(choices, found.chosen, total).hold(choices, found.chosen):
            return found
        bound = found.bound
    proven, done = math.inf, set[tuple[int, ...]]()
    while True:
        ways = ((max(low, bound), ends) for low, ends in cuts.ways() if ends not in done)
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
