"""The picture of a retrieval check: context length × depth, the share of needles found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from quantkit.receipts import atomic
from quantkit.retrieval.results import Answer
from quantkit.sizes import tokens_text

DEPTH_BANDS = 10


def draw_heatmap(answers: Sequence[Answer], title: str, out: Path) -> None:
    """Write a PNG: one row a context length, one column a tenth of the depth, hits in the cells."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    lengths = sorted({answer.context_tokens for answer in answers})
    trials = np.zeros((len(lengths), DEPTH_BANDS), int)
    hits = np.zeros_like(trials)
    for answer in answers:
        row = lengths.index(answer.context_tokens)
        band = min(int(answer.depth * DEPTH_BANDS), DEPTH_BANDS - 1)
        trials[row, band] += 1
        hits[row, band] += answer.hit
    share = np.where(trials > 0, hits / np.maximum(trials, 1), np.nan)
    figure = Figure(figsize=(8.4, 1.7 + 0.52 * len(lengths)), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colors = LinearSegmentedColormap.from_list("retrieval", ["#b4232a", "#f2c14e", "#2f8f5b"])
    colors.set_bad("#eeeeee")
    image = axes.imshow(share, cmap=colors, vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(DEPTH_BANDS), [f"{10 * b}–{10 * b + 10}" for b in range(DEPTH_BANDS)])
    axes.set_yticks(range(len(lengths)), [tokens_text(n) for n in lengths])
    axes.set_xlabel("depth of the needle in the context, %")
    axes.set_ylabel("context, tokens")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.set_xticks(np.arange(-0.5, DEPTH_BANDS), minor=True)
    axes.set_yticks(np.arange(-0.5, len(lengths)), minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    for row in range(len(lengths)):
        for band in range(DEPTH_BANDS):
            if trials[row, band]:
                text = f"{hits[row, band]}/{trials[row, band]}"
                dark = 0.25 < share[row, band] < 0.8
                axes.text(
                    band, row, text, ha="center", va="center", fontsize=9,
                    color="#222222" if dark else "white",
                )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.015, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0 %", "50 %", "100 %"])
    bar.outline.set_visible(False)
    with atomic(out) as partial:
        # without the software's version in the file, the same answers give the same bytes
        figure.savefig(partial, format="png", metadata={"Software": None})
