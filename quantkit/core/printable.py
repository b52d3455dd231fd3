"""Text that a stranger chose, made fit for a terminal."""

from __future__ import annotations

MOST_CHARACTERS = 120


def shown(name: str) -> str:
    """`name` in at most `MOST_CHARACTERS` characters, without control characters."""
    plain = printable(name[:MOST_CHARACTERS])
    return plain if len(name) <= MOST_CHARACTERS else plain + "…"


def printable(text: str) -> str:
    """`text` with control characters and half surrogates written as their codes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)
