"""The heatmap of a retrieval check: hits and log-probabilities by context length and depth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from quantkit.core.files import atomic
from quantkit.core.units import tokens_text
from quantkit.report.colors import SHARE_COLORS, share_color, text_color
from quantkit.report.retrieval_cells import Cell, Grid, grid_of
from quantkit.report.retrieval_words import nats_text
from quantkit.retrieval.results import MAIN_TASKS, Answer

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOTHING = "#eceff2"
"""The colour of cells without questions."""
SOFT, INK = "#566270", "#1c2430"
WIDTH, ROW_HEIGHT, FRAME_HEIGHT = 9.6, 0.46, 0.85
"""Inches: of the picture, of a row, and of a panel beside its rows."""


def draw_heatmap(answers: Sequence[Answer], title: str, out: Path) -> None:
    """Write a PNG of the main task, one row a context length, one column a tenth of the depth.

    Above the hits of each cell; below the mean log-probability of the right answer, coloured by
    the geometric mean of the probabilities, where any was measured.

    Raises:
        ValueError: there is no answer to a main task.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    task = next((task for task in MAIN_TASKS if any(a.task == task for a in answers)), None)
    if task is None:
        raise ValueError(f"a heatmap is of {' or '.join(MAIN_TASKS)}, and neither was asked")
    grid = grid_of(answers, task)
    panels = 2 if grid.has_log_probabilities else 1
    height = 0.75 + panels * (FRAME_HEIGHT + ROW_HEIGHT * len(grid.lengths))
    layout = ConstrainedLayoutEngine(h_pad=0.07, w_pad=0.07)
    figure = Figure(figsize=(WIDTH, height), dpi=160, layout=layout)
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, squeeze=False)[:, 0]
    figure.suptitle(title, x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
    _draw(axes[0], grid, [(_hits(c), c.share) for c in grid.cells.values()], "found / asked")
    if panels == 2:
        below = [(nats_text(c.log_probability), c.probability) for c in grid.cells.values()]
        _draw(axes[1], grid, below, "mean log-probability of the right answer, nats")
    axes[-1].set_xlabel("depth of the needle in the context, %", color=SOFT)
    colors = LinearSegmentedColormap.from_list("shares", SHARE_COLORS)
    scale = ScalarMappable(Normalize(0, 1), colors)
    bar = figure.colorbar(scale, ax=list(axes), pad=0.012, aspect=30, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.ax.set_yticklabels(["0 %", "25 %", "50 %", "75 %", "100 %"], color=SOFT, fontsize=8.5)
    bar.ax.tick_params(length=0)
    bar.outline.set_visible(False)
    words = "share found" + ("; geometric mean of the probabilities" if panels == 2 else "")
    bar.set_label(words, color=SOFT, fontsize=8.5)
    with atomic(out) as partial:
        # without the software's version in the file, the same answers give the same bytes
        figure.savefig(partial, format="png", metadata={"Software": None})


def _draw(axes: Axes, grid: Grid, shown: Sequence[tuple[str, float | None]], heading: str) -> None:
    """One panel: of each of the grid's cells its text, and the share that colours it."""
    from matplotlib.patches import Rectangle

    names = [tokens_text(length) for length in grid.lengths]
    axes.set_xlim(-0.5, len(grid.bands) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_facecolor(NOTHING)
    for (length, column), (text, share) in zip(grid.cells, shown, strict=True):
        row = grid.lengths.index(length)
        color = NOTHING if share is None else share_color(share)
        axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=color, linewidth=0))
        axes.text(
            column, row, text, ha="center", va="center", fontsize=9.5, color=text_color(color)
        )
    axes.set_title(heading, loc="left", fontsize=10, color=SOFT)
    axes.set_xticks(range(len(grid.bands)), grid.bands, color=SOFT, fontsize=8.5)
    axes.set_yticks(range(len(names)), names, color=INK)
    axes.set_ylabel("context, tokens", color=SOFT)
    axes.set_xticks(np.arange(0.5, len(grid.bands) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(names) - 1), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _hits(cell: Cell) -> str:
    return f"{cell.hits}/{cell.trials}"
