"""Whether an answer holds the value that was asked for."""

from __future__ import annotations

THINKING_END = "</think>"


def spoken(answer: str) -> str:
    """The answer without the model's thinking."""
    return answer.rpartition(THINKING_END)[2].strip()


def is_hit(answer: str, value: str) -> bool:
    """The value stands in the answer; extra words do no harm."""
    return value.casefold() in spoken(answer).casefold()
