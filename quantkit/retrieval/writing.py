"""The haystack with its hidden sentences as one text, and where everything stands in it."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.retrieval.branches import Tokenize
from quantkit.retrieval.layout import Piece

STOP = "."
"""Sentences are counted behind one: some tokenizers treat the beginning of a text differently."""
BLOCK = 8
"""Sentences that are tokenized together, and share the tokens by their characters: llama.cpp
compiles a tokenizer's patterns for each text again, which takes longer than a sentence does."""


class Sentences:
    """The haystack's sentences from a random one on, each once, with their tokens.

    Attributes:
        longest: tokens of the longest by characters.

    Raises:
        InputError: there are none.
    """

    def __init__(self, tokenize: Tokenize, haystack: Sequence[str], rng: random.Random) -> None:
        if not haystack:
            raise InputError("the haystack holds no sentences; give another text with --haystack")
        self._tokenize = tokenize
        self._haystack = haystack
        self._start = rng.randrange(len(haystack))
        self._stop = len(tokenize(STOP))
        self._counts: list[int] = []
        self.longest = self.count(max(haystack, key=len))

    def __len__(self) -> int:
        return len(self._haystack)

    def __getitem__(self, index: int) -> str:
        return self._haystack[(self._start + index) % len(self._haystack)]

    def count(self, sentence: str) -> int:
        """Tokens of a sentence with the space before it, about."""
        return max(len(self._tokenize(f"{STOP} {sentence}")) - self._stop, 1)

    def tokens_of(self, index: int) -> int | None:
        """Tokens of one of them, about; None behind the last."""
        while len(self._counts) <= min(index, len(self) - 1):
            first = len(self._counts)
            block = [self[i] for i in range(first, min(first + BLOCK, len(self)))]
            tokens = self.count(" ".join(block))
            characters = list(itertools.accumulate(len(sentence) + 1 for sentence in block))
            ends = [round(tokens * end / characters[-1]) for end in characters]
            self._counts += [end - begin for begin, end in itertools.pairwise([0, *ends])]
        return self._counts[index] if index < len(self) else None


@dataclass(frozen=True)
class Written:
    """A prompt's text from its beginning to the end of the haystack.

    Attributes:
        pieces: in their order, with the tokens before each as they were planned.
        begins, ends: the characters at which they begin, and behind which they end.
    """

    text: str
    pieces: tuple[Piece, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    def hidden(self) -> dict[int, int]:
        """Index of a hidden sentence → the place of its piece."""
        return {piece.index: at for at, piece in enumerate(self.pieces) if piece.hidden}

    def place(self, cut: int) -> tuple[tuple[int, int], int]:
        """Between which characters the text may be cut so that no hidden sentence is, and where.

        Args:
            cut: in planned tokens of the haystack.
        """
        found = bisect.bisect_right(self.pieces, cut, key=lambda piece: piece.begins_at) - 1
        at = max(found, 0)
        low = next((self.ends[i] for i in range(at, -1, -1) if self.pieces[i].hidden), None)
        following = range(at + 1, len(self.pieces))
        high = next((self.begins[i] - 1 for i in following if self.pieces[i].hidden), None)
        low = self.begins[0] if low is None else low
        high = len(self.text) if high is None else high
        if self.pieces[at].hidden:
            return (low, high), low
        share = min((cut - self.pieces[at].begins_at) / max(self.pieces[at].tokens, 1), 1.0)
        wanted = self.begins[at] + round(share * (self.ends[at] - self.begins[at]))
        space = self.text.rfind(" ", 0, wanted + 1)
        return (low, high), min(max(space, low), high)


def write(
    before: str, pieces: Sequence[Piece], sentences: Sentences, told: Sequence[str]
) -> Written:
    """`before`, then the pieces with spaces between them."""
    texts = [told[piece.index] if piece.hidden else sentences[piece.index] for piece in pieces]
    lengths = (len(text) + 1 for text in texts[:-1])
    begins = tuple(itertools.accumulate(lengths, initial=len(before)))
    ends = tuple(begin + len(text) for begin, text in zip(begins, texts, strict=True))
    return Written(before + " ".join(texts), tuple(pieces), begins, ends)
