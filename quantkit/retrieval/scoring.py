"""Whether an answer contains the right values; other words do not count against it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

THINKING_TAGS = ("<think>", "</think>")
"""In the text of an answer, also if they are special tokens."""
FEWEST_DIGITS = 3
"""Of a hidden value in any recipe."""
_RUN = re.compile(r"[0-9]+")
_GROUPED = re.compile(  # 48,213 and 1 048 213, with one kind of separator
    r"(?<![0-9])[0-9]{1,3}(?P<separator>[,.'\u2019\u00a0\u2009\u202f ])[0-9]{3}"
    r"(?:(?P=separator)[0-9]{3})*(?![0-9])"
)
_DECLINING = re.compile(
    r"\b(?:no|none|not|nothing|never|nowhere|neither|unknown|cannot|unable|absent|missing"
    r"|without)\b|n['\u2019]t\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Scored:
    """Whether the answer is right, and how many values were found."""

    hit: bool
    found: int


def spoken(answer: str, *, thinking: bool = False) -> str:
    """The answer without the model's thinking; with `thinking`, it is empty unless that ends."""
    _, end, said = answer.rpartition(THINKING_TAGS[1])
    return "" if thinking and not end else said.strip()


def score(
    task: str,
    values: Sequence[str],
    answer: str,
    *,
    thinking: bool = False,
    digits: int = FEWEST_DIGITS,
) -> Scored:
    """Compare an answer with the right values; case does not matter.

    A value counts as a whole number, with or without thousands separators, not as a part of a
    longer one. The task `absent` (no values) is a hit if the answer declines in words and names no
    number that could have been hidden; any other words would let a broken model pass.

    Args:
        digits: of the hidden values.
    """
    said = spoken(answer, thinking=thinking).casefold()
    numbers = _numbers(said)
    if task == "absent":
        named = any(len(number) >= digits for number in numbers)
        return Scored(bool(_DECLINING.search(said)) and not named, 0)
    found = sum(value.casefold() in numbers for value in values)
    return Scored(bool(values) and found == len(values), found)


def _numbers(text: str) -> set[str]:
    """All whole numbers, without separators; 123,456 may be one number or two."""
    numbers = {match.group().replace(match["separator"], "") for match in _GROUPED.finditer(text)}
    return numbers | set(_RUN.findall(_GROUPED.sub(_ambiguous, text)))


def _ambiguous(match: re.Match[str]) -> str:
    """The text of the match if it may be several numbers, else nothing."""
    separator = match["separator"]
    several = separator == " " or len(match.group().partition(separator)[0]) == 3
    return match.group() if several else ""
