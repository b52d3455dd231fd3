"""The picture of an importance matrix' coverage: tokens that reached each expert, by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from quantkit.core.files import atomic
from quantkit.formats.imatrix_file import Imatrix
from quantkit.study.imatrix_coverage import ENOUGH_TOKENS, coverage_of, percent_text

NUMBERS_UP_TO = 16
"""Experts of a layer up to which each cell shows its tokens."""
DOTS_UP_TO = 400
UNSEEN_COLOR = "#1c2430"
FEW_LAYERS = 12


def draw_coverage(imatrix: Imatrix, title: str, path: Path) -> None:
    """Write a PNG: a row for each layer with experts, a column for each expert, log scale."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    coverage = coverage_of(imatrix)
    layers = coverage.expert_layers
    width = max((len(layer.experts) for layer in layers), default=1)
    tokens = np.full((max(len(layers), 1), width), np.nan)
    for row, layer in enumerate(layers):
        tokens[row, : len(layer.experts)] = layer.experts
    exact = imatrix.counts_are_exact
    small = len(layers) <= FEW_LAYERS
    height = 1.9 + (0.52 if small else 0.15) * len(tokens)
    figure = Figure(figsize=(8.4, min(height, 14.0)), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
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
    for spine in axes.spines.values():
        spine.set_visible(False)
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
    with atomic(path) as partial:
        # without the software's version in the file, the same imatrix gives the same bytes
        figure.savefig(partial, format="png", metadata={"Software": None})
