"""What the merges of a BPE make of a text, as the tokenizers library applies them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Encoded:
    """The symbols that a text is merged to, and the rank of the last merge; None without any."""

    symbols: tuple[str, ...]
    last_rank: int | None

    @property
    def rank(self) -> int | None:
        """The rank of the merge that makes the whole text one symbol, None where none does."""
        return self.last_rank if len(self.symbols) == 1 else None


class Merges:
    """The merges of a model, by falling priority."""

    def __init__(self, pairs: Iterable[Sequence[str]]) -> None:
        self.ranks = {(left, right): rank for rank, (left, right) in enumerate(pairs)}

    def encode(self, text: str) -> Encoded:
        """Join the pair of the highest priority, of several the leftmost, until none is left."""
        symbols, last = list(text), None
        ranks = self.ranks
        while len(symbols) > 1:
            found = [ranks.get(pair, -1) for pair in pairwise(symbols)]
            rank = min((r for r in found if r >= 0), default=None)
            if rank is None:
                break
            at = found.index(rank)
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
            last = rank
        return Encoded(tuple(symbols), last)

    def unreachable(self, tokens: Iterable[str]) -> str | None:
        """A token that the merges of its own characters do not lead to, None without any.

        Without any, `ignore_merges` changes nothing.
        """
        return next((t for t in tokens if len(self.encode(t).symbols) > 1), None)
