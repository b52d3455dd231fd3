"""The pictures of a build: retrieval heatmap, imatrix coverage, what-if curves; their colours."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from quantkit.core.files import atomic
from quantkit.core.units import tokens_text, unit_of
from quantkit.formats.imatrix_file import Imatrix
from quantkit.plan.what_if import Cell as WhatIfCell
from quantkit.report.retrieval import Cell, Grid, grid_of, nats_text
from quantkit.retrieval.results import MAIN_TASKS, Answer
from quantkit.study.imatrix_coverage import ENOUGH_TOKENS, coverage_of, percent_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTHING = "#eceff2"
"""The colour of cells without questions."""
SOFT, INK = "#566270", "#1c2430"
WIDTH, ROW_HEIGHT, FRAME_HEIGHT = 9.6, 0.46, 0.85
"""Inches: of the picture, of a row, and of a panel beside its rows."""


@contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Draw with matplotlib as it ships, whatever its user has set.

    As it is imported it reads a file `matplotlibrc` of the current folder, which may be anybody's.
    """
    with chdir("/") if "matplotlib" not in sys.modules else nullcontext():
        import matplotlib
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield


def save_png(figure: Figure, out: Path) -> None:
    """Write `figure` to `out`; the same figure gives the same bytes."""
    with atomic(out) as partial:
        figure.savefig(partial, format="png", metadata={"Software": None})  # else it has versions


@plain_matplotlib()
def draw_heatmap(answers: Sequence[Answer], title: str, out: Path) -> None:
    """Write a PNG of the main task, one row a context length, one column a tenth of the depth.

    Above the hits of each cell; below the mean log-probability of the right answer, coloured by
    the geometric mean of the probabilities, where any was measured.

    Raises:
        ValueError: there is no answer to a main task.
    """
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
    save_png(figure, out)


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
    axes.spines[:].set_visible(False)


def _hits(cell: Cell) -> str:
    return f"{cell.hits}/{cell.trials}"


NUMBERS_UP_TO = 16
"""Experts of a layer up to which each cell shows its tokens."""
DOTS_UP_TO = 400
UNSEEN_COLOR = "#1c2430"
FEW_LAYERS = 12


@plain_matplotlib()
def draw_coverage(imatrix: Imatrix, title: str, path: Path) -> None:
    """Write a PNG: a row for each layer with experts, a column for each expert, log scale."""
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    coverage = coverage_of(imatrix.entries)
    layers = coverage.expert_layers
    width = max((len(layer.experts) for layer in layers), default=1)
    tokens = np.full((max(len(layers), 1), width), np.nan)
    for row, layer in enumerate(layers):
        tokens[row, : len(layer.experts)] = layer.experts
    exact = imatrix.counts_are_exact
    small = len(layers) <= FEW_LAYERS
    height = 1.9 + (0.52 if small else 0.15) * len(tokens)
    figure = Figure(figsize=(8.4, min(height, 14.0)), dpi=144, layout="constrained")
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list(
        "coverage", ["#b4232a", "#f2c14e", "#2f8f5b"]
    ).with_extremes(under=UNSEEN_COLOR, bad="white")
    most = max(float(np.nanmax(tokens)) if layers else 1.0, 10.0)
    norm = LogNorm(1, most)
    shown = np.where(tokens == 0, 0.5, tokens)  # a logarithm has no 0
    image = axes.imshow(shown, cmap=colors, norm=norm, aspect="auto", interpolation="nearest")
    names = [layer.name for layer in layers] or [""]
    step = 1 if small else -(-len(names) // 24)
    axes.set_yticks(range(0, len(names), step), names[::step])
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    if width <= NUMBERS_UP_TO:
        axes.set_xticks(range(width))
        axes.set_xticks(np.arange(-0.5, width), minor=True)
    else:
        axes.xaxis.set_major_locator(MultipleLocator(-(-width // 64) * 8))
    axes.set_yticks(np.arange(-0.5, len(names)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2 if small else 0.8)
    axes.set_xlim(-0.5, width - 0.5)
    if width <= NUMBERS_UP_TO and exact:
        for row, layer in enumerate(layers):
            for expert, count in enumerate(layer.experts):
                middle = count > 0 and 0.25 < norm(count) < 0.8
                axes.text(
                    expert, row, f"{count:,}" if count else "unseen", ha="center", va="center",
                    fontsize=9, color="#222222" if middle else "white",
                )  # fmt: skip
    if width > NUMBERS_UP_TO and len(coverage.unseen) <= DOTS_UP_TO:
        rows, experts = np.nonzero(tokens == 0)  # a cell is thin: a dot to find it by
        axes.scatter(experts, rows, s=14, color=UNSEEN_COLOR, edgecolors="white", linewidths=0.6)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", pad=24)
    words = f"{percent_text(coverage.share())} of {coverage.experts:,} experts reached"
    if exact:
        words += (
            f", {percent_text(coverage.share(ENOUGH_TOKENS))} by {ENOUGH_TOKENS} tokens or more"
        )
    axes.annotate(
        words, (0, 1), (0, 6), "axes fraction", "offset points", fontsize=9, color="#5d6978"
    )
    if coverage.unseen:
        axes.legend(
            handles=[Patch(color=UNSEEN_COLOR, label=f"no token ({len(coverage.unseen):,})")],
            loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9,
            borderaxespad=0.2, handlelength=1.0, handleheight=1.0,
        )  # fmt: skip
    if exact:
        bar = figure.colorbar(image, ax=axes, pad=0.015, aspect=20 if small else 40)
        bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        bar.ax.minorticks_off()
        bar.set_label("tokens")
        bar.outline.set_visible(False)
    save_png(figure, path)


_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8f5a9e", "#c77d0a")
_MARKS = ("o", "s", "^", "D", "v")


@plain_matplotlib()
def draw_what_if(
    cells: Sequence[WhatIfCell],
    levels: Sequence[tuple[int, str]],
    elements: int,
    title: str,
    out: Path,
) -> None:
    """Write the picture, PNG or SVG by the name of `out`.

    Args:
        levels: bytes and name of each, drawn as lines where they lie within the picture.
        elements: weights of the model, for the scale in bits a weight.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.0), dpi=144, layout="constrained")
    axes = figure.subplots()
    unit, scale = unit_of(cell.largest.total_bytes for cell in cells if cell.largest is not None)
    sizes = [cell.largest.total_bytes / scale for cell in cells if cell.largest is not None]
    for index, kind in enumerate(dict.fromkeys(cell.kv_type for cell in cells)):
        found = [
            (cell.context_tokens, cell.largest.total_bytes / scale)
            for cell in cells
            if cell.kv_type == kind and cell.largest is not None
        ]
        axes.plot(
            [tokens for tokens, _ in found],
            [size for _, size in found],
            marker=_MARKS[index % len(_MARKS)],
            color=_COLOURS[index % len(_COLOURS)],
            label=f"{kind} KV cache" if found else f"{kind} KV cache: nothing fits",
            linewidth=2,
        )
    low, high = (min(sizes), max(sizes)) if sizes else (0.0, 1.0)
    margin = max(0.08 * (high - low), 0.02 * high)
    bottom, top = max(0.0, low - 4 * margin), high + 4 * margin
    axes.set_ylim(bottom, top)
    inside = [(size / scale, name) for size, name in levels if bottom < size / scale < top]
    for size, _ in inside:
        axes.axhline(size, color="0.6", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
    for size, names in _labels(inside, 0.035 * (top - bottom)):
        axes.annotate(
            names, (0.0, size), xycoords=("axes fraction", "data"), xytext=(4, 3),
            textcoords="offset points", fontsize=8, color="0.35",
        )  # fmt: skip
    contexts = sorted({cell.context_tokens for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xlim(contexts[0] / 1.25, contexts[-1] * 1.25)
    axes.set_xticks(contexts, [tokens_text(tokens) for tokens in contexts])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel(f"largest artifact that fits, {unit}")

    def bits_of(size: NDArray[np.float64]) -> NDArray[np.float64]:
        return size * (8 * scale / elements)

    def size_of(bits: NDArray[np.float64]) -> NDArray[np.float64]:
        return bits * (elements / (8 * scale))

    bits = axes.secondary_yaxis("right", functions=(bits_of, size_of))  # type: ignore[arg-type]
    bits.set_ylabel("bits a weight")
    axes.grid(visible=True, color="0.92")
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    axes.set_title(title, loc="left", fontsize=11)
    with atomic(out) as partial:
        figure.savefig(partial, format=out.suffix[1:].lower())


def _labels(levels: Sequence[tuple[float, str]], apart: float) -> list[tuple[float, str]]:
    """Labels of lines, the smallest first: lines less than `apart` from each other share one."""
    groups: list[list[tuple[float, str]]] = []
    for size, name in levels:
        if groups and size - groups[-1][0][0] < apart:
            groups[-1].append((size, name))
        else:
            groups.append([(size, name)])
    return [(group[-1][0], ", ".join(name for _, name in group)) for group in groups]


SHARE_COLORS = (
    "#fee838", "#e5cf52", "#c8b866", "#aea371", "#948e77",
    "#7d7c78", "#666970", "#4f576c", "#35456c", "#12356b",
)  # fmt: skip
"""From a share of 0 to one of 1, equal steps: cividis reversed, without its darkest tenth.

Its lightness falls evenly, also for readers with colour vision deficiency (Nuñez, Anderton and
Renslow, "Optimizing colormaps with consideration for color vision deficiency", PLOS ONE 13:7,
2018): misses are bright, hits are dark.
"""


def share_color(share: float) -> str:
    """`#rrggbb` of a share between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(SHARE_COLORS) - 1)
    low = min(int(place), len(SHARE_COLORS) - 2)
    pairs = zip(_channels(SHARE_COLORS[low]), _channels(SHARE_COLORS[low + 1]), strict=True)
    return "#" + bytes(round(a + (b - a) * (place - low)) for a, b in pairs).hex()


def text_color(background: str) -> str:
    """Black or white, whichever has more contrast; that is at least 4.58 on any background."""
    return max("#000000", "#ffffff", key=lambda color: contrast(color, background))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21, as WCAG 2.2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _channels(color: str) -> bytes:
    return bytes.fromhex(color[1:])


def _luminance(color: str) -> float:
    """Relative luminance of sRGB, by WCAG 2.2."""
    red, green, blue = (
        c / 12.92 if (c := channel / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for channel in _channels(color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
