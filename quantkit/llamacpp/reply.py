"""A model's reply to a prompt, in this process or from a llama-server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Reply:
    """A generated answer, and the scores of given ones.

    Attributes:
        truncated: whether the token limit ended it.
        log_probabilities: of the candidates in order, nats; None where unknown.
        rank: worst rank in the vocabulary of the right answer's tokens; 1 if greedy decoding
            gives it.
    """

    text: str
    truncated: bool
    log_probabilities: tuple[float | None, ...]
    rank: int | None
