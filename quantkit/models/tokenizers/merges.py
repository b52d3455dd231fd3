"""What the merges of a BPE make of a text, as the tokenizers library applies them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

Ranks = Mapping[tuple[str, str], int]
"""The priority of every merge; 0 is the first."""


def merge_ranks(pairs: Iterable[Sequence[str]]) -> Ranks:
    return {(left, right): rank for rank, (left, right) in enumerate(pairs)}


def merged(text: str, ranks: Ranks) -> tuple[list[str], int]:
    """The symbols that a text is merged to, and the rank of the last merge; -1 without any.

    The pair of the first rank is joined, of several the leftmost, until none is left.
    """
    symbols, last = list(text), -1
    while found := [ranks.get(pair, len(ranks)) for pair in pairwise(symbols)]:
        rank = min(found)
        if rank == len(ranks):
            break
        at = found.index(rank)
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
        last = rank
    return symbols, last


def unreachable(tokens: Iterable[str], ranks: Ranks) -> Iterator[str]:
    """The tokens that the merges of their own characters do not lead to.

    Without any, `ignore_merges` changes nothing.
    """
    return (token for token in tokens if len(merged(token, ranks)[0]) > 1)
