"""The picture of a comparison: names that stand beside their points and on no other."""

from __future__ import annotations

import itertools

from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.transforms import Bbox

from quantkit.report.comparison.pareto_picture import _name_points, _panel, _Point


def test_names_of_neighbours_do_not_cover_each_other() -> None:
    points = [_Point(f"a-model-of-120B-Q4_K_{i}", 4 + i / 50, 0.1 + i / 100, 0.0) for i in range(4)]
    figure = Figure(figsize=(5.8, 4.8), dpi=144)
    axes = figure.subplots()
    _panel(axes, points, {points[0].name}, "GiB")
    _name_points(axes, points, {points[0].name})
    boxes = [child.get_window_extent() for child in axes.texts if isinstance(child, Annotation)]
    assert len(boxes) == 4
    for one, other in itertools.combinations(boxes, 2):
        assert Bbox.intersection(one, other) is None
