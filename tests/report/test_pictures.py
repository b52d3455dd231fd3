"""The heatmap: its panels and its colour scale."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from finished_levels import answer, answers_of
from PIL import Image

from quantkit.report.pictures import SHARE_COLORS, contrast, draw_heatmap, share_color, text_color
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


def test_settings_of_the_current_folder_do_not_count(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"figure.facecolor: red\nsavefig.dpi: \xff\n")
    code = (
        "from pathlib import Path; from finished_levels import answers_of;"
        "from quantkit.report.pictures import draw_heatmap;"
        "draw_heatmap(answers_of(0.2), 'a title', Path('there.png'))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=tmp_path, env=environment, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    with matplotlib.rc_context({"figure.facecolor": "red"}):
        draw_heatmap(answers_of(0.2), "a title", tmp_path / "here.png")
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "there.png").read_bytes()
    plain = drawn(tmp_path / "plain.png", answers_of(0.2))
    assert share_of(plain, "#ff0000") == 0
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "here.png").read_bytes()


def test_only_the_main_task_is_drawn(tmp_path: Path) -> None:
    main = [a for a in answers_of(0.2) if a.task == "multikey"]
    pictures = drawn(tmp_path / "a.png", main), drawn(tmp_path / "b.png", answers_of(0.2))
    assert np.array_equal(*pictures)
    classic = [replace(a, task="single") for a in main]
    assert np.array_equal(drawn(tmp_path / "c.png", classic), pictures[0])
    with pytest.raises(ValueError, match="multikey or single"):
        draw_heatmap([answer("absent", 8192, 0, 1)], "a title", tmp_path / "d.png")


STEPS = [n / 200 for n in range(201)]
DEUTERANOPIA = ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413),
                (-0.011820, 0.042940, 0.968881))  # fmt: skip
PROTANOPIA = ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216),
              (-0.003882, -0.048116, 1.051998))  # fmt: skip
"""On linear RGB: Machado, Oliveira and Fernandes, "A physiologically-based model for simulation of
color vision deficiency", IEEE TVCG 15:6 (2009), severity 1."""


def lightness(color: str, seen: object = ((1, 0, 0), (0, 1, 0), (0, 0, 1))) -> float:
    """CIE L* of `color` for an eye that sees linear RGB as the matrix `seen` says."""
    channels = np.array([int(color[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    y = np.array([0.2126, 0.7152, 0.0722]) @ np.clip(np.array(seen) @ linear, 0, 1)
    return float(116 * np.cbrt(y) - 16)


def test_the_scale_is_cividis() -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    steps = [1 - n / 10 for n in range(9)]
    assert list(SHARE_COLORS[:9]) == [to_hex(colormaps["cividis"](step)) for step in steps]


@pytest.mark.parametrize("seen", [np.eye(3), DEUTERANOPIA, PROTANOPIA])
def test_more_is_darker_for_every_eye(seen: object) -> None:
    light = np.array([lightness(share_color(share), seen) for share in STEPS])
    steps = np.diff(light[::20])
    assert (steps < -3).all(), steps
    assert light[0] - light[-1] > 60


def test_text_can_be_read_on_every_colour() -> None:
    for share in STEPS:
        back = share_color(share)
        assert contrast(back, text_color(back)) >= 4.5
    assert text_color(share_color(0)) == "#000000"
    assert text_color(share_color(1)) == "#ffffff"


def test_shares_beyond_the_ends_have_the_ends_colours() -> None:
    assert share_color(-0.1) == share_color(0) == SHARE_COLORS[0]
    assert share_color(1.5) == share_color(1) == SHARE_COLORS[-1]


def test_contrast_as_wcag_has_it() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.478, abs=0.001)
    assert contrast("#ffffff", "#777777") == contrast("#777777", "#ffffff")
