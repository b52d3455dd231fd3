"""Where hidden sentences stand in the haystack, and the text with them.

Places are tokens of the haystack, hidden sentences included. Hidden sentences stand at sentence
boundaries, each in its stratum, and not near a cut (the end of the haystack of one length). The
earliest deadline goes first, so all deadlines are met if that is possible at all.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.retrieval.branches import Tokenize

MOST_HIDDEN = 2 / 3
"""Largest share of a haystack that hidden sentences take: some text has to stand between them."""
GUARD_TOKENS = 24
"""Distance of hidden sentences from a cut, so that the cut can be moved a little."""
STOP = "."
"""Sentences are counted after one: some tokenizers treat the beginning of a text differently."""
BLOCK = 8
"""Sentences that are tokenized together, and share the tokens by their characters: llama.cpp
compiles a tokenizer's patterns for each text again, which takes longer than a sentence does."""


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


def check_room(items: Sequence[Item], cuts: Sequence[int], lengths: Sequence[int]) -> None:
    """Check that before no cut hidden sentences take more than MOST_HIDDEN of the haystack.

    Those of longer haystacks count by the share of their haystack that this one is.

    Args:
        cuts: tokens of each haystack.
        lengths: the context lengths of `cuts`, for the message.

    Raises:
        InputError: they take more.
    """
    for place, cut in enumerate(cuts):
        hidden = sum(
            item.tokens * (1.0 if item.cut <= place else max(cut, 0) / max(cuts[item.cut], 1))
            for item in items
        )
        if hidden > MOST_HIDDEN * cut:
            raise InputError(
                f"a context of {lengths[place]} tokens leaves {max(cut, 0)} for the haystack; the "
                f"sentences hidden in it take {round(hidden)}, and at most two thirds may be "
                "hidden; use a longer context or fewer needles and probes"
            )


def lay_out(
    items: Sequence[Item],
    cuts: Sequence[int],
    tokens_of: Callable[[int], int],
    longest_sentence: int,
) -> list[Piece]:
    """The text as pieces, up to a little more than the last cut.

    Args:
        items: of equal deadlines the first stands first.
        cuts: in tokens, ascending.
        tokens_of: index of a haystack sentence → its tokens.
        longest_sentence: of the haystack, in tokens.

    Raises:
        InputError: deadlines cannot be met in a tiny haystack; `check_room` refuses other cases.
    """
    latest = _deadlines(items, cuts, longest_sentence)
    longest = max((item.tokens for item in items), default=0)
    targets = [min(item.at * cuts[item.cut], latest[i]) for i, item in enumerate(items)]
    waiting = sorted(range(len(items)), key=lambda i: targets[i], reverse=True)
    urgent = sorted((deadline, i) for i, deadline in enumerate(latest))  # a heap too
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


def lay_out_one(depth: float, told: int, size: int, tokens_of: Callable[[int], int]) -> list[Piece]:
    """The text with one hidden sentence, of `told` tokens, at `depth` of a haystack of `size`."""
    pieces: list[Piece] = []
    at = index = 0
    last = size - told - GUARD_TOKENS
    wanted = min(depth * size, last)
    while at < size + GUARD_TOKENS or len(pieces) == index:
        tokens = tokens_of(index)
        # before the sentence that reaches beyond the wanted place, or after its first half
        if len(pieces) == index and (at + tokens / 2 > wanted or at + tokens > last):
            pieces.append(Piece(True, 0, at, told))
            at += told
        pieces.append(Piece(False, index, at, tokens))
        at, index = at + tokens, index + 1
    return pieces


def _deadlines(items: Sequence[Item], cuts: Sequence[int], longest_sentence: int) -> list[float]:
    """The latest token at which each item may begin, such that all can be met one after another."""
    latest = []
    longest = max((item.tokens for item in items), default=0)
    for item in items:
        end = cuts[item.cut]
        deadline = min(item.until * end, end - GUARD_TOKENS - longest)
        for cut in reversed(cuts[: item.cut]):
            before = cut - GUARD_TOKENS - longest
            # the first boundary after the cut can be as far as the longest sentence
            if before < deadline < cut + GUARD_TOKENS + longest_sentence:
                deadline = before
        latest.append(deadline)
    order = sorted(range(len(items)), key=lambda i: (latest[i], i), reverse=True)
    for later, earlier in itertools.pairwise(order):
        latest[earlier] = min(latest[earlier], latest[later] - items[earlier].tokens)
    return latest


class Sentences:
    """The haystack's sentences from a random one on, each once, with their approximate tokens.

    Args:
        context_tokens: the longest context that they are to fill.

    Attributes:
        longest: tokens of the sentence with the most characters.

    Raises:
        InputError: there are none.
    """

    def __init__(
        self, tokenize: Tokenize, haystack: Sequence[str], rng: random.Random, context_tokens: int
    ) -> None:
        if not haystack:
            raise InputError("the haystack holds no sentences; give another text with --haystack")
        start = rng.randrange(len(haystack))
        self._sentences = (*haystack[start:], *haystack[:start])
        self._tokenize, self._context_tokens = tokenize, context_tokens
        self._stop = len(tokenize(STOP))
        self._counts: list[int] = []
        self.longest = self.count(max(haystack, key=len))

    def __getitem__(self, index: int) -> str:
        return self._sentences[index]

    def count(self, sentence: str) -> int:
        """Tokens of a sentence with the space before it."""
        return max(len(self._tokenize(f"{STOP} {sentence}")) - self._stop, 1)

    def tokens_of(self, index: int) -> int:
        """Tokens of a sentence.

        Raises:
            InputError: there are no more sentences.
        """
        while index >= len(self._counts):
            block = self._sentences[len(self._counts) : len(self._counts) + BLOCK]
            if not block:
                raise InputError(
                    f"the haystack fills only {sum(self._counts)} of {self._context_tokens} tokens "
                    "without repeating; give a longer text with --haystack"
                )
            tokens = self.count(" ".join(block))
            characters = list(itertools.accumulate(len(sentence) + 1 for sentence in block))
            ends = [round(tokens * end / characters[-1]) for end in characters]
            self._counts += [end - begin for begin, end in itertools.pairwise([0, *ends])]
        return self._counts[index]


@dataclass(frozen=True)
class Written:
    """A prompt's text from its beginning to the end of the haystack.

    Attributes:
        pieces: in order of the text.
        begins, ends: the characters at which they begin and after which they end.
    """

    text: str
    pieces: tuple[Piece, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def place(self, cut: int) -> tuple[tuple[int, int], int]:
        """The characters between which the text may be cut without a hidden sentence, and where.

        Args:
            cut: in planned tokens of the haystack.
        """
        found = bisect.bisect_right(self.pieces, cut, key=lambda piece: piece.begins_at) - 1
        at = max(found, 0)
        hidden = [i for i, piece in enumerate(self.pieces) if piece.hidden]
        later = bisect.bisect_right(hidden, at)
        low = self.ends[hidden[later - 1]] if later else self.begins[0]
        high = self.begins[hidden[later]] - 1 if later < len(hidden) else len(self.text)
        if self.pieces[at].hidden:
            return (low, high), low
        share = min((cut - self.pieces[at].begins_at) / max(self.pieces[at].tokens, 1), 1.0)
        wanted = self.begins[at] + round(share * (self.ends[at] - self.begins[at]))
        space = self.text.rfind(" ", 0, wanted + 1)
        return (low, high), min(max(space, low), high)


def write(
    before: str, pieces: Sequence[Piece], sentences: Sentences, hidden: Sequence[str]
) -> Written:
    """`before`, then the pieces with spaces between them; `hidden` are the items' sentences."""
    texts = [hidden[piece.index] if piece.hidden else sentences[piece.index] for piece in pieces]
    lengths = (len(text) + 1 for text in texts[:-1])
    begins = tuple(itertools.accumulate(lengths, initial=len(before)))
    ends = tuple(begin + len(text) for begin, text in zip(begins, texts, strict=True))
    return Written(before + " ".join(texts), tuple(pieces), begins, ends)
