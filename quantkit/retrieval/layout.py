"""Where hidden sentences stand in the haystack: at sentence boundaries, each in its stratum.

Places are counted in tokens of the haystack, hidden sentences included. A sentence has a target and
a deadline, and no cut (the end of the haystack of one length) comes near a sentence; what has the
earliest deadline goes first, so all of them are met when the deadlines can be met at all.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.core.errors import InputError

MOST_HIDDEN = 2 / 3
"""Of a haystack may be hidden sentences: some text has to stand between them."""
GUARD_TOKENS = 24
"""No hidden sentence stands nearer to a cut, so that the cut can be moved a little."""


@dataclass(frozen=True)
class Item:
    """A sentence to hide.

    Attributes:
        cut: index of the cut before which it must stand.
        at, until: its place and its latest place, shares of the haystack up to that cut.
    """

    cut: int
    at: float
    until: float
    tokens: int


@dataclass(frozen=True)
class Piece:
    """A sentence of the text: `index` of the haystack's sentences or of the items."""

    hidden: bool
    index: int
    begins_at: int
    tokens: int


@dataclass(frozen=True)
class Crowded:
    """Why there is no layout: too many hidden sentences before a cut."""

    cut: int
    hidden_tokens: int


def crowded(items: Sequence[Item], cuts: Sequence[int]) -> Crowded | None:
    """The first cut before which hidden sentences take more than MOST_HIDDEN of the haystack.

    Of those for longer haystacks a share is counted, by length.
    """
    for place, cut in enumerate(cuts):
        before = sum(
            item.tokens * (1.0 if item.cut <= place else max(cut, 0) / max(cuts[item.cut], 1))
            for item in items
        )
        if before > MOST_HIDDEN * cut:
            return Crowded(place, round(before))
    return None


def lay_out(
    items: Sequence[Item],
    cuts: Sequence[int],
    tokens_of: Callable[[int], int | None],
    longest_sentence: int,
) -> list[Piece] | None:
    """The text as pieces, up to a little more than the last cut.

    Args:
        items: of equal deadlines the first stands first.
        cuts: in tokens, ascending.
        tokens_of: a haystack sentence → its tokens; None: the haystack has ended.
        longest_sentence: of the haystack, in tokens.

    Returns:
        None where the haystack ends too early.

    Raises:
        InputError: deadlines cannot be met, in a tiny haystack; `crowded` says more of others.
    """
    latest = _deadlines(items, cuts, longest_sentence)
    longest = max((item.tokens for item in items), default=0)
    targets = [min(item.at * cuts[item.cut], latest[i]) for i, item in enumerate(items)]
    waiting = sorted(range(len(items)), key=lambda i: targets[i], reverse=True)
    urgent = [(deadline, i) for i, deadline in enumerate(latest)]
    heapq.heapify(urgent)
    due: list[tuple[float, int]] = []
    placed = [False] * len(items)
    pieces: list[Piece] = []
    at = sentence = 0
    if urgent and urgent[0][0] < 0:
        raise InputError(
            f"{len(items)} hidden sentences have no room in haystacks of {cuts[0]} and more "
            "tokens; use longer contexts or fewer needles and probes"
        )

    def first(heap: list[tuple[float, int]]) -> tuple[float, int] | None:
        while heap and placed[heap[0][1]]:
            heapq.heappop(heap)
        return heap[0] if heap else None

    def blocked(item: Item) -> bool:
        return any(
            cut - GUARD_TOKENS - longest < at < cut + GUARD_TOKENS for cut in cuts[: item.cut]
        )

    while at < cuts[-1] + GUARD_TOKENS or first(urgent):
        size = tokens_of(sentence)
        if size is None:
            return None
        while waiting and targets[waiting[-1]] <= at:
            i = waiting.pop()
            heapq.heappush(due, (latest[i], i))
        most_urgent, ready = first(urgent), first(due)
        chosen = None
        if most_urgent and at + size > most_urgent[0]:
            chosen = most_urgent[1]
        elif most_urgent and ready and not blocked(items[ready[1]]):
            late = at + items[ready[1]].tokens > most_urgent[0]
            chosen = (most_urgent if late else ready)[1]
        if chosen is None:
            pieces.append(Piece(False, sentence, at, size))
            at, sentence = at + size, sentence + 1
        else:
            pieces.append(Piece(True, chosen, at, items[chosen].tokens))
            at, placed[chosen] = at + items[chosen].tokens, True
    return pieces


def _deadlines(items: Sequence[Item], cuts: Sequence[int], longest_sentence: int) -> list[float]:
    """The latest token at which each item may begin, such that all can be met, one by one."""
    latest = []
    longest = max((item.tokens for item in items), default=0)
    for item in items:
        end = cuts[item.cut]
        deadline = min(item.until * end, end - GUARD_TOKENS - longest)
        for cut in reversed(cuts[: item.cut]):
            before = cut - GUARD_TOKENS - longest
            # the first boundary behind the cut can be as far as the longest sentence
            if before < deadline < cut + GUARD_TOKENS + longest_sentence:
                deadline = before
        latest.append(deadline)
    order = sorted(range(len(items)), key=lambda i: (latest[i], i), reverse=True)
    for later, earlier in itertools.pairwise(order):
        latest[earlier] = min(latest[earlier], latest[later] - items[earlier].tokens)
    return latest
