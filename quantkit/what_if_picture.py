"""The picture of `quantkit plan --what-if`: what fits, over the context, for each KV cache type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.receipts import atomic
from quantkit.sizes import GIB, tokens_text
from quantkit.what_if import Cell

_COLOURS = ("#1b6ca8", "#d1495b", "#3a7d44", "#8f5a9e", "#c77d0a")
_MARKS = ("o", "s", "^", "D", "v")


def draw_what_if(
    cells: Sequence[Cell],
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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 5.0), dpi=144, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    sizes = [cell.largest.total_bytes / GIB for cell in cells if cell.largest is not None]
    for index, kind in enumerate(dict.fromkeys(cell.kv_type for cell in cells)):
        found = [
            (cell.context_tokens, cell.largest.total_bytes / GIB)
            for cell in cells
            if cell.kv_type == kind and cell.largest is not None
        ]
        if found:
            axes.plot(
                [tokens for tokens, _ in found],
                [size for _, size in found],
                marker=_MARKS[index % len(_MARKS)],
                color=_COLOURS[index % len(_COLOURS)],
                label=f"{kind} KV cache",
                linewidth=2,
            )
    low, high = (min(sizes), max(sizes)) if sizes else (0.0, 1.0)
    margin = max(0.08 * (high - low), 0.02 * high)
    axes.set_ylim(max(0.0, low - 4 * margin), high + 2 * margin)
    for size, name in levels:
        if axes.get_ylim()[0] < size / GIB < axes.get_ylim()[1]:
            axes.axhline(size / GIB, color="0.6", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
            axes.annotate(
                name, (1.0, size / GIB), xycoords=("axes fraction", "data"), xytext=(-4, 3),
                textcoords="offset points", ha="right", fontsize=8, color="0.35",
            )  # fmt: skip
    contexts = sorted({cell.context_tokens for cell in cells})
    axes.set_xscale("log", base=2)
    axes.set_xticks(contexts, [tokens_text(tokens) for tokens in contexts])
    axes.minorticks_off()
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("largest artifact that fits, GiB")

    def bits_of(gib: NDArray[np.float64]) -> NDArray[np.float64]:
        return gib * (8 * GIB / elements)

    def gib_of(bits: NDArray[np.float64]) -> NDArray[np.float64]:
        return bits * (elements / (8 * GIB))

    bits = axes.secondary_yaxis("right", functions=(bits_of, gib_of))  # type: ignore[arg-type]
    bits.set_ylabel("bits a weight")
    axes.grid(visible=True, color="0.92")
    axes.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="lower left")
    axes.set_title(title, loc="left", fontsize=11)
    with atomic(out) as partial:
        figure.savefig(partial, format=out.suffix[1:])
