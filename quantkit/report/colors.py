"""The colour scale of shares for pictures and pages, and text colours with enough contrast."""

from __future__ import annotations

SHARE_COLORS = (
    "#fee838", "#e5cf52", "#c8b866", "#aea371", "#948e77",
    "#7d7c78", "#666970", "#4f576c", "#35456c", "#12356b",
)  # fmt: skip
"""From a share of 0 to one of 1, equal steps: cividis reversed, without its darkest tenth.

Its lightness falls evenly, also for readers with colour vision deficiency (Nuñez, Anderton and
Renslow, "Optimizing colormaps with consideration for color vision deficiency", PLOS ONE 13:7,
2018): misses are bright, hits are dark.
"""


def share_color(share: float) -> str:
    """`#rrggbb` of a share between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(SHARE_COLORS) - 1)
    low = min(int(place), len(SHARE_COLORS) - 2)
    pairs = zip(_channels(SHARE_COLORS[low]), _channels(SHARE_COLORS[low + 1]), strict=True)
    mixed = (round(a + (b - a) * (place - low)) for a, b in pairs)
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def text_color(background: str) -> str:
    """Black or white, whichever has more contrast; that is at least 4.58 on any background."""
    return max("#000000", "#ffffff", key=lambda color: contrast(color, background))


def contrast(one: str, other: str) -> float:
    """The contrast ratio of two colours, 1 to 21, as WCAG 2.2 defines it."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _channels(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _luminance(color: str) -> float:
    """Relative luminance of sRGB, by WCAG 2.2."""
    red, green, blue = (
        c / 12.92 if (c := channel / 255) <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for channel in _channels(color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
