"""Answers grouped by context length and depth: the cells of a heatmap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.retrieval.results import Answer
from quantkit.retrieval.statistics import Bounds, hit_rate_bounds

DEPTH_BANDS = 10
DEPTHLESS_TASKS = ("absent",)
"""Tasks without a needle in the haystack: their answers share one band."""


@dataclass(frozen=True)
class Cell:
    """The answers at one context length in one band of the depth, shallowest first; at least one.

    Attributes:
        bounds: exact, of all trials together, whatever their seeds.
        log_probability: mean of those that have one, nats; None where none has.
    """

    answers: tuple[Answer, ...]
    bounds: Bounds
    log_probability: float | None

    @property
    def trials(self) -> int:
        return len(self.answers)

    @property
    def hits(self) -> int:
        return sum(answer.hit for answer in self.answers)

    @property
    def truncated(self) -> int:
        """Answers that missed because they were cut off."""
        return sum(answer.truncated and not answer.hit for answer in self.answers)

    @property
    def share(self) -> float:
        """Of the trials, those that hit."""
        return self.hits / self.trials

    @property
    def probability(self) -> float | None:
        """Geometric mean of the right answers' probabilities."""
        return None if self.log_probability is None else math.exp(self.log_probability)


@dataclass(frozen=True)
class Grid:
    """One task's answers by length and depth.

    Attributes:
        lengths: context tokens, shortest first.
        bands: labels of the columns, per cent of the depth; one for a task that has none.
        cells: (context tokens, column) → its answers; missing where nothing was asked.
    """

    task: str
    lengths: tuple[int, ...]
    bands: tuple[str, ...]
    cells: dict[tuple[int, int], Cell]

    @property
    def has_log_probabilities(self) -> bool:
        return any(cell.log_probability is not None for cell in self.cells.values())


def grid_of(answers: Sequence[Answer], task: str) -> Grid:
    """The answers to `task` by length and by tenths of the depth."""
    wide = task not in DEPTHLESS_TASKS
    groups: dict[tuple[int, int], list[Answer]] = {}
    for answer in answers:
        if answer.task == task:
            band = min(int(answer.depth * DEPTH_BANDS), DEPTH_BANDS - 1) if wide else 0
            groups.setdefault((answer.context_tokens, band), []).append(answer)
    width = 100 // DEPTH_BANDS
    names = tuple(f"{width * band}–{width * (band + 1)}" for band in range(DEPTH_BANDS))
    return Grid(
        task=task,
        lengths=tuple(sorted({length for length, _ in groups})),
        bands=names if wide else ("any",),
        cells={place: _cell(groups[place]) for place in sorted(groups)},
    )


def _cell(answers: Sequence[Answer]) -> Cell:
    known = [a.log_probability for a in answers if a.log_probability is not None]
    return Cell(
        answers=tuple(sorted(answers, key=lambda a: (a.depth, a.seed, a.index))),
        bounds=hit_rate_bounds([(sum(a.hit for a in answers), len(answers))]),
        log_probability=sum(known) / len(known) if known else None,
    )
