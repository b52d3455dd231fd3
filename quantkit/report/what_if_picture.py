"""The picture of `quantkit plan --what-if`: what fits, over the context, for each KV cache type."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.files import atomic
from quantkit.core.units import tokens_text, unit_of
from quantkit.plan.what_if import Cell

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
