"""The colour scale: its order for every eye, and text that can be read on all of it."""

from __future__ import annotations

import numpy as np
import pytest

from quantkit.report.colors import SHARE_COLORS, contrast, share_color, text_color

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
