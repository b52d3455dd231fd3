"""What the merges of a BPE make of a text, as the tokenizers library applies them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from quantkit.core.errors import InputError

Pair = tuple[str, str]


def merge_pair(entry: object) -> Pair:
    """The two parts of a merge; older files store it as "left right", newer as two strings.

    Raises:
        InputError: it is neither.
    """
    parts = entry.split(" ") if isinstance(entry, str) else entry
    # No match statement: it takes five times as long, and a vocabulary has 270,000 merges.
    if isinstance(parts, list) and len(parts) == 2:
        left, right = parts
        if isinstance(left, str) and isinstance(right, str):
            return left, right
    raise InputError(f"tokenizer.json: {entry!r} is no merge; download it again")


def distinct(pairs: Sequence[Pair]) -> list[Pair]:
    """Every merge once: of a repeated one, the library takes the last and llama.cpp the first."""
    return list(dict.fromkeys(reversed(pairs)))[::-1]


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
    """The merges of a model, the most urgent first."""

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._ranks = {pair: rank for rank, pair in enumerate(distinct(pairs))}

    @property
    def pairs(self) -> Iterable[Pair]:
        return self._ranks.keys()

    def __len__(self) -> int:
        return len(self._ranks)

    @classmethod
    def of_model(cls, model: Mapping[str, Any]) -> Merges:
        """The merges of a tokenizer.json's `model`."""
        return cls([merge_pair(entry) for entry in model.get("merges") or ()])

    def encode(self, text: str) -> Encoded:
        """Join the most urgent pair, of several the leftmost, until none is left."""
        symbols, last = list(text), None
        ranks = self._ranks
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
