"""The picture of size against quality: divergence from the base, and the right answers."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantkit.core.units import unit_of
from quantkit.report.comparison.measured import Measured
from quantkit.report.pictures import plain_matplotlib, save_png
from quantkit.study.kld_statistics import standard_error

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

_INK, _SOFT, _FRONT, _OTHER = "#1c2430", "#5d6978", "#2457a6", "#b9682c"
_DOT = 10
"""Half of a point's width, pixels, with room around it."""
_LABEL_COLUMNS = 26
_LABEL_PLACES = tuple((x, y) for y in (6, -14, 20, -28, 34, -42, 48, -56, 62) for x in (8, -8))
"""Offsets of a label that are tried, points; on the left it ends there."""
_ERRORS = 1.96
"""Standard errors up and down: 95 % of a normal distribution."""


@dataclass(frozen=True)
class _Point:
    """Less is better in both directions."""

    name: str
    size: float
    loss: float
    error: float


@plain_matplotlib()
def draw_pareto(
    artifacts: Sequence[Measured], front: Collection[str], title: str, out: Path
) -> None:
    """Write a PNG: a panel for KLD, and one for the right answers where they were measured.

    The base itself has no divergence and no place on a logarithmic axis; it is named below.
    """
    from matplotlib.figure import Figure

    unit, scale = unit_of(artifact.size_bytes for artifact in artifacts)
    panels = [
        (
            "mean KLD from the base, nats",
            [
                _Point(a.name, a.size_bytes / scale, a.divergence.mean, a.divergence.mean_error)
                for a in artifacts
            ],
        )
    ]
    answered = [_answer_point(artifact, scale) for artifact in artifacts]
    known = [point for point in answered if point is not None]
    if known:
        panels.append(("mean −log-probability of right answers, nats", known))
    figure = Figure(figsize=(0.8 + 5.0 * len(panels), 4.8), dpi=144, layout="constrained")
    all_axes: list[Any] = list(figure.subplots(1, len(panels), squeeze=False)[0])
    for axes, (label, points) in zip(all_axes, panels, strict=True):
        _panel(axes, points, front, unit)
        axes.set_title(label, loc="left", fontsize=10, color=_INK)
        axes.set_xlabel(f"size, {unit}", fontsize=9.5, color=_INK)
    all_axes[0].set_ylabel("lower is better", fontsize=9.5, color=_INK)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    figure.text(
        0.995, 0.992, "filled: no smaller artifact is as good; bars: 95 %", ha="right", va="top",
        fontsize=8.5, color=_SOFT,
    )  # fmt: skip
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # labels are put where nothing moves any more
    for axes, (_, points) in zip(all_axes, panels, strict=True):
        _name_points(axes, points, front)
    save_png(figure, out)


def _answer_point(artifact: Measured, scale: float) -> _Point | None:
    if artifact.log_probability is None:
        return None
    values = [a.log_probability for a in artifact.main_answers if a.log_probability is not None]
    error = standard_error(np.array(values)) if len(values) > 1 else 0.0
    return _Point(artifact.name, artifact.size_bytes / scale, -artifact.log_probability, error)


def _stairs(points: Sequence[_Point]) -> list[_Point]:
    """Those that lose less than every smaller one."""
    found: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.size, p.loss)):
        if not found or point.loss < found[-1].loss:
            found.append(point)
    return found


def _name_points(axes: Axes, points: Sequence[_Point], front: Collection[str]) -> None:
    """A label beside each point, at the first place that covers no other label and no point."""
    from matplotlib.transforms import Bbox

    drawn = [point for point in points if point.loss > 0]
    dots = [axes.transData.transform((point.size, point.loss)) for point in drawn]
    taken = [Bbox.from_bounds(x - _DOT, y - _DOT, 2 * _DOT, 2 * _DOT) for x, y in dots]
    inside = axes.get_window_extent()
    for point in drawn:
        label = axes.annotate(
            textwrap.fill(point.name, _LABEL_COLUMNS), (point.size, point.loss),
            xytext=_LABEL_PLACES[0], textcoords="offset points", fontsize=9, linespacing=1.0,
            color=_INK if point.name in front else _OTHER,
        )  # fmt: skip
        costs = []
        for place in _LABEL_PLACES:
            label.set_position(place)
            label.set_horizontalalignment("left" if place[0] > 0 else "right")
            box = label.get_window_extent()
            covered = sum(_area(Bbox.intersection(box, other)) for other in taken)
            costs.append(covered + _area(box) - _area(Bbox.intersection(box, inside)))
        best = _LABEL_PLACES[costs.index(min(costs))]
        label.set_position(best)
        label.set_horizontalalignment("left" if best[0] > 0 else "right")
        taken.append(label.get_window_extent())


def _area(box: Bbox | None) -> float:
    return 0.0 if box is None else box.width * box.height


def _panel(axes: Axes, points: Sequence[_Point], front: Collection[str], unit: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    drawn = [point for point in points if point.loss > 0]
    stairs = _stairs(drawn)
    axes.step(
        [p.size for p in stairs], [p.loss for p in stairs], where="post", color=_FRONT, lw=1.5,
        alpha=0.4,
    )  # fmt: skip
    for point in drawn:
        inside = point.name in front
        color = _FRONT if inside else _OTHER
        reach = _ERRORS * point.error
        axes.vlines(
            point.size, max(point.loss - reach, point.loss / 4), point.loss + reach, color=color,
            lw=1.4, alpha=0.7,
        )  # fmt: skip
        axes.plot(
            [point.size], [point.loss], marker="o", ms=7.5, color=color, markeredgewidth=1.6,
            markerfacecolor=color if inside else "white", zorder=3,
        )  # fmt: skip
    if drawn:
        axes.set_yscale("log")
        wide = max(p.loss for p in drawn) > 300 * min(p.loss for p in drawn)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    nothing = [f"{p.name} ({p.size:.2f} {unit})" for p in points if p.loss <= 0]
    if nothing:
        axes.annotate(
            f"0: {', '.join(nothing)}", (0.99, 0.015), xycoords="axes fraction", ha="right",
            va="bottom", fontsize=8.5, color=_SOFT,
        )  # fmt: skip
    axes.margins(x=0.2, y=0.14)
    axes.grid(visible=True, which="major", color="0.91")
    axes.grid(visible=True, which="minor", axis="y", color="0.96")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_SOFT, labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["bottom", "left"]].set_color("0.75")
