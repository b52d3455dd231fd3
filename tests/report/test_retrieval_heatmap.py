"""The picture of a check: its panels and its colours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from finished_levels import answer, answers_of
from PIL import Image

from quantkit.report.colors import share_color
from quantkit.report.retrieval_heatmap import draw_heatmap
from quantkit.retrieval.results import Answer


def drawn(path: Path, answers: list[Answer]) -> np.ndarray:
    draw_heatmap(answers, "a title", path)
    return np.asarray(Image.open(path).convert("RGB"))


def share_of(pixels: np.ndarray, color: str) -> float:
    wanted = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)])
    return float((pixels == wanted).all(axis=2).mean())


def test_hits_above_and_probabilities_below(tmp_path: Path) -> None:
    # found, but half as likely as not: the panels differ in colour
    answers = [
        answer("multikey", 8192, i, 20, log_probability=float(np.log(0.3))) for i in range(20)
    ]
    pixels = drawn(tmp_path / "h.png", answers)
    assert share_of(pixels, share_color(1.0)) > 0.1
    assert share_of(pixels, share_color(0.3)) > 0.1
    middle = len(pixels) // 2
    assert share_of(pixels[middle + 10 :], share_color(1.0)) < 0.01, "hits are above"


def test_one_panel_where_nothing_was_measured(tmp_path: Path) -> None:
    both = answers_of(0.2)
    without = [replace(a, log_probability=None) for a in both]
    assert len(drawn(tmp_path / "one.png", without)) < 0.7 * len(drawn(tmp_path / "two.png", both))


def test_the_same_answers_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw_heatmap(answers_of(0.2), "a title", tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_only_the_main_task_is_drawn(tmp_path: Path) -> None:
    main = [a for a in answers_of(0.2) if a.task == "multikey"]
    pictures = drawn(tmp_path / "a.png", main), drawn(tmp_path / "b.png", answers_of(0.2))
    assert np.array_equal(*pictures)
    classic = [replace(a, task="single") for a in main]
    assert np.array_equal(drawn(tmp_path / "c.png", classic), pictures[0])
    with pytest.raises(ValueError, match="multikey or single"):
        draw_heatmap([answer("absent", 8192, 0, 1)], "a title", tmp_path / "d.png")
