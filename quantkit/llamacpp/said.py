"""What a model answered, in this process or behind a llama-server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        truncated: stopped by the limit of tokens.
        log_probabilities: of the candidates, nats, in their order; None where it is not known.
        rank: of the right answer's worst token among the vocabulary; 1: greedy decoding says it.
    """

    text: str
    truncated: bool
    log_probabilities: tuple[float | None, ...]
    rank: int | None
