"""Sizes, times and untrusted names as text; GiB (2^30) and GB (10^9) are told apart."""

from __future__ import annotations

import re
from collections.abc import Iterable

GIB, GB = 1 << 30, 10**9
MIB = 1 << 20


def bytes_text(size: float) -> str:
    """Binary units that suit the size: `318 B`, `4.0 MiB`, `70.60 GiB`."""
    for unit, scale, digits in (("GiB", 30, 2), ("MiB", 20, 1), ("KiB", 10, 1)):
        if size >= 0.95 * 2**scale:
            return f"{size / 2**scale:.{digits}f} {unit}"
    return f"{size:.0f} B"


def gib_text(size: float, of: float | None = None) -> str:
    """`70.60 GiB`, or MiB below a tenth of one.

    Args:
        of: the largest of a column, which decides its unit: MiB below one GiB.
    """
    small = size < GIB / 10 if of is None else of < GIB
    return f"{size / MIB:.2f} MiB" if small else f"{size / GIB:.2f} GiB"


def unit_of(sizes: Iterable[int]) -> tuple[str, int]:
    """The unit of a column of sizes: GiB, or MiB if the largest is below a tenth of one."""
    return ("GiB", GIB) if max(sizes, default=0) >= GIB / 10 else ("MiB", MIB)


def gb_text(size: float, of: float | None = None) -> str:
    """`75.81 GB`, or MB below a tenth of one; `of` as in `gib_text`."""
    small = size < GB / 10 if of is None else of < GIB
    return f"{size / 10**6:.2f} MB" if small else f"{size / GB:.2f} GB"


def seconds_text(seconds: float) -> str:
    """`0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def tokens_text(tokens: int) -> str:
    """`504K` and `1M` in units of 1024; any other number as it is."""
    for unit, scale in (("M", 1 << 20), ("K", 1 << 10)):
        if tokens >= scale and tokens % scale == 0:
            return f"{tokens // scale}{unit}"
    return f"{tokens:,}"


MOST_CHARACTERS = 120
CONTROLS = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff"
    "\U000e0000-\U000e007f]"
)
"""What a terminal obeys where a file is printed, but for line ends and tabs, and what reorders or
hides text."""


def shown(name: str, most: int = MOST_CHARACTERS) -> str:
    """`name` in at most `most` characters, without control characters."""
    plain = printable(name[:most])
    return plain if len(name) <= most else plain + "…"


def printable(text: str) -> str:
    """`text` with control characters and half surrogates written as their codes.

    What `str.isprintable` refuses: C0 and C1 controls with ESC and CSI among them, line ends,
    directions of writing, and what has no width.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _code(ord(c)) for c in text)


def _code(point: int) -> str:
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"
