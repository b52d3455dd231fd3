"""The tokens of the end of a long text with its questions, without tokenizing all of it each time.

The text is tokenized as a whole once. After that, only what follows an anchor shortly before its
end is tokenized, and counts from where its tokens are those of the whole. If a tokenizer merges
across the anchor, whole texts are tokenized instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.retrieval.branches import Tokenize, Tokens

ANCHOR_CHARACTERS = 400
"""Between the anchor and the first place where prompts differ."""
MAX_DROPPED_TOKENS = 8
"""After an anchor; with more, the tokenizer does not return to the tokens of the whole."""
SEARCH_CHARACTERS = 400
"""On both sides of a guess, for the word boundary that fills the context best."""
NEAR_TOKENS = 12
"""A guess as near as this is corrected by words, another one by a new plan."""


@dataclass(frozen=True)
class Ending:
    """The text after the haystack in a prompt, and the limit of its answer."""

    text: str
    answer_tokens: int


class SeamBroken(Exception):
    """The tokens at the anchor are not the same for every ending."""


@dataclass(frozen=True)
class Seam:
    """Tokens of `text[:cut] + ending` for cuts and endings after an anchor, a character of `text`.

    Attributes:
        head: tokens that all of them begin with.
        dropped: first tokens of the text after the anchor, which belong to `head`.
    """

    tokenize: Tokenize
    text: str
    head: Tokens
    anchor: int
    dropped: Tokens

    def tail(self, cut: int, ending: str) -> Tokens:
        """The tokens after `head`.

        Raises:
            SeamBroken: the text after the anchor is not enough to find them.
        """
        tokens = self.tokenize(self.text[self.anchor : cut] + ending)
        dropped = len(self.dropped)
        if not np.array_equal(tokens[:dropped], self.dropped):
            raise SeamBroken
        return tokens[dropped:]


def _no_seam(tokenize: Tokenize, text: str) -> Seam:
    """Tokenizes every text from its beginning."""
    empty = np.zeros(0, np.int32)
    return Seam(tokenize, text, empty, 0, empty)


def _find_seam(
    tokenize: Tokenize, text: str, whole: Tokens, cut: int, ending: str, before: int
) -> Seam:
    """A seam for cuts from `before` on; `whole` has the tokens of `text[:cut] + ending`."""
    anchor = text.rfind(" ", 0, max(before - ANCHOR_CHARACTERS, 0))
    if anchor > 0:
        end = tokenize(text[anchor:cut] + ending)
        same = common_tokens(whole[::-1], end[::-1])
        if len(end) - same <= MAX_DROPPED_TOKENS:
            dropped = end[: len(end) - same]
            return Seam(tokenize, text, whole[: len(whole) - same], anchor, dropped)
    return _no_seam(tokenize, text)


@dataclass(frozen=True)
class Cut:
    """Where the haystack ends, and the prompts of all endings: `seam.head`, then a tail each."""

    at: int
    seam: Seam
    tails: tuple[Tokens, ...]


def find_cut(
    tokenize: Tokenize,
    text: str,
    within: tuple[int, int],
    guess: int,
    endings: Sequence[Ending],
    limit: int,
) -> Cut | int:
    """The last word boundary at which all endings, with their answers, stay within `limit`.

    Args:
        within: first and last character at which `text` may be cut.
        guess: one of them; the result is near it.
        limit: tokens of prompt and answer.

    Returns:
        The cut; or, if `guess` is not near it or no boundary fits, how many tokens later it should
        be.
    """
    longest = max(endings, key=lambda e: len(tokenize(e.text)) + e.answer_tokens)
    whole = tokenize(text[:guess] + longest.text)
    missing = limit - longest.answer_tokens - len(whole)
    if abs(missing) > NEAR_TOKENS:
        return missing
    low, high = max(within[0], guess - SEARCH_CHARACTERS), min(within[1], guess + SEARCH_CHARACTERS)
    places = [i for i in range(low, high + 1) if i == len(text) or text[i] == " "]
    seam = _find_seam(tokenize, text, whole, guess, longest.text, low)
    try:
        found = _last_fitting(seam, places, longest, endings, limit)
        if found is not None and found.at != guess:
            tail = found.tails[endings.index(longest)]
            whole = tokenize(text[: found.at] + longest.text)
            if not np.array_equal(whole, np.concatenate([seam.head, tail])):
                raise SeamBroken
    except SeamBroken:
        found = _last_fitting(_no_seam(tokenize, text), places, longest, endings, limit)
    return missing if found is None else found


def _last_fitting(
    seam: Seam, places: Sequence[int], longest: Ending, endings: Sequence[Ending], limit: int
) -> Cut | None:
    def fits(ending: Ending, tail: Tokens) -> bool:
        return len(seam.head) + len(tail) + ending.answer_tokens <= limit

    low, high = 0, len(places)  # places before `low` fit, those from `high` on do not
    while low < high:
        middle = (low + high) // 2
        if fits(longest, seam.tail(places[middle], longest.text)):
            low = middle + 1
        else:
            high = middle
    for place in reversed(places[:low]):
        tails = tuple(seam.tail(place, ending.text) for ending in endings)
        if all(fits(ending, tail) for ending, tail in zip(endings, tails, strict=True)):
            return Cut(place, seam, tails)
    return None


def common_tokens(first: Tokens, second: Tokens) -> int:
    """The number of equal tokens that both begin with."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
