"""What a task hides and asks: sentences with wanted places, a question, right and wrong values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.recipe import Probe, Task
from quantkit.retrieval.needles import Needle

__all__ = ["Asking", "Hidden", "Probe", "Stratum", "Task", "answer_limit", "needle"]

MORE_VALUE_TOKENS = 24
"""Room for each further value of an answer, where the limit for one is longer: most of a long
answer is thinking, which is done once."""


@dataclass(frozen=True)
class Stratum:
    """Where a sentence shall stand, as shares of the haystack of its length, 0 to 1.

    Attributes:
        at: its place.
        until: no later than this, where sentence boundaries allow.
    """

    at: float
    until: float = 1.0


@dataclass(frozen=True)
class Hidden:
    """One sentence in the haystack.

    Attributes:
        key: what it tells something about; of the grid of word pairs, but for paraphrased.
        value: that it gives; empty where it gives none.
    """

    sentence: str
    key: str
    value: str
    place: Stratum


@dataclass(frozen=True)
class Asking:
    """One question, and what is hidden for it.

    Attributes:
        index: of the question within its seed, length and task.
        key: that is asked for.
        values: right answers; none for a key that is hidden nowhere.
        lures: wrong values of its own, the likeliest first.
        hidden: in the order of their places; where two want the same place they keep it.
        answered_by: which of `hidden` hold the answer; none for an absent key.
    """

    task: Task
    index: int
    key: str
    question: str
    values: tuple[str, ...]
    lures: tuple[str, ...]
    hidden: tuple[Hidden, ...]
    answered_by: tuple[int, ...]


def needle(task: Task, index: int, key: str, value: str, place: Stratum) -> Asking:
    """One key with one value, in the wording that all such tasks share."""
    told = Needle(key, value)
    hidden = (Hidden(told.sentence, key, value, place),)
    return Asking(task, index, key, told.question, (value,), (), hidden, (0,))


def answer_limit(values: Sequence[str], answer_tokens: int) -> int:
    """Tokens of an answer that gives all of `values`; `answer_tokens` is the limit for one."""
    more = max(len(values) - 1, 0)
    return answer_tokens + more * min(answer_tokens, MORE_VALUE_TOKENS)
