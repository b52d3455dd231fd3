"""Answers by length and depth."""

from __future__ import annotations

import math

import pytest
from finished_levels import answer

from quantkit.report.retrieval_cells import grid_of
from quantkit.retrieval.statistics import hit_rate_bounds


def test_cells_are_tenths_of_the_depth() -> None:
    depths = (0.0, 0.0999, 0.1, 0.55, 0.9999, 1.0)
    answers = [answer("multikey", 8192, i, 6, depth=depth) for i, depth in enumerate(depths)]
    grid = grid_of([*answers, answer("two-hop", 4096, 0, 1)], "multikey")
    assert grid.lengths == (8192,)
    assert grid.bands[0] == "0–10"
    assert grid.bands[9] == "90–100"
    assert {place: cell.trials for place, cell in grid.cells.items()} == {
        (8192, 0): 2, (8192, 1): 1, (8192, 5): 1, (8192, 9): 2,
    }  # fmt: skip


def test_a_cell_counts_what_is_in_it() -> None:
    answers = [
        answer("multikey", 8192, 3, 4, depth=0.02, hit=False, log_probability=-3.0),
        answer("multikey", 8192, 1, 4, depth=0.01, log_probability=-1.0),
        answer("multikey", 8192, 2, 4, depth=0.03, hit=False, truncated=True, log_probability=None),
        answer("multikey", 8192, 0, 4, depth=0.04, truncated=True, log_probability=-2.0),
    ]
    cell = grid_of(answers, "multikey").cells[8192, 0]
    assert [a.index for a in cell.answers] == [1, 3, 2, 0], "shallowest first"
    assert (cell.trials, cell.hits, cell.truncated, cell.share) == (4, 2, 1, 0.5)
    assert cell.log_probability == pytest.approx(-2.0)
    assert cell.probability == pytest.approx(math.exp(-2))
    assert cell.bounds == hit_rate_bounds([(2, 4)])


def test_an_absent_key_has_no_depth() -> None:
    answers = [answer("absent", 8192, i, 3, depth=i / 2) for i in range(3)]
    grid = grid_of(answers, "absent")
    assert grid.bands == ("any",)
    assert grid.cells[8192, 0].trials == 3
    assert not grid.has_log_probabilities


def test_an_impossible_answer_has_no_probability() -> None:
    never = answer("multikey", 8192, 0, 1, depth=0.0, log_probability=-math.inf)
    assert grid_of([never], "multikey").cells[8192, 0].probability == 0
