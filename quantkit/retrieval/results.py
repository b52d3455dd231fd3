"""What a retrieval check found: answers, hits by length, and the figure that the gate looks at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.retrieval.statistics import lower_bound


@dataclass(frozen=True)
class Answer:
    """One asked needle: where it lay, what was expected, what came.

    Attributes:
        prefix_tokens: length of the haystack's prefix, decoded once for all needles in it.
        truncated: the limit of answer tokens cut the answer off.
    """

    context_tokens: int
    prefix_tokens: int
    seed: int
    index: int
    depth: float
    key: str
    value: str
    answer: str
    hit: bool
    truncated: bool


@dataclass(frozen=True)
class LengthScore:
    """Hits at one context length, all seeds together."""

    context_tokens: int
    trials: int
    hits: int
    lower_bound: float


@dataclass(frozen=True)
class Retrieval:
    """What the retrieval check found.

    Attributes:
        lengths: shortest first; the gate looks at the last.
        fork_difference: largest relative logit difference between a fork and a fresh decode.
    """

    answers: tuple[Answer, ...]
    lengths: tuple[LengthScore, ...]
    fork_difference: float

    @property
    def prefill_tokens(self) -> int:
        """Tokens decoded for haystacks, each shared by all of its questions."""
        return sum({(a.context_tokens, a.seed): a.prefix_tokens for a in self.answers}.values())

    @property
    def gate(self) -> LengthScore:
        return self.lengths[-1]

    def passes(self, minimum_lower_bound: float | None) -> bool:
        """Whether the longest context's bound reaches the recipe's; without one all pass."""
        return minimum_lower_bound is None or self.gate.lower_bound >= minimum_lower_bound


def score_lengths(answers: Sequence[Answer]) -> tuple[LengthScore, ...]:
    """Hits and bounds by context length, shortest first."""
    scores = []
    for length in sorted({answer.context_tokens for answer in answers}):
        chosen = [answer.hit for answer in answers if answer.context_tokens == length]
        hits, trials = sum(chosen), len(chosen)
        scores.append(LengthScore(length, trials, hits, lower_bound(hits, trials)))
    return tuple(scores)
