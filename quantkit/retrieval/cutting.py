"""The end of a long text and its questions as tokens, without tokenizing all of it each time.

The text is tokenized as a whole once. From an anchor shortly before its end on, tokens are then
taken up again: short texts are tokenized, and count from where their tokens are those of the whole.
A tokenizer that looks across the anchor is paid for with whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.retrieval.branches import Tokenize, Tokens

ANCHOR_CHARACTERS = 400
"""Between anchor and the first place where prompts differ."""
MAX_DROPPED_TOKENS = 8
"""At an anchor; more mean that the tokenizer does not find back to the tokens of the whole."""
SEARCH_CHARACTERS = 400
"""To both sides of a guess, for the word boundary that fills the context best."""
NEAR_TOKENS = 12
"""A guess that is so near is corrected by words; another one takes another whole tokenization."""


@dataclass(frozen=True)
class Ending:
    """What follows the haystack in a prompt, and how long its answer may be."""

    text: str
    answer_tokens: int


class SeamBroken(Exception):
    """The tokens at the anchor are not the same for every ending."""


class Seam:
    """Tokens of `text[:cut] + ending` for cuts and endings behind an anchor.

    Attributes:
        head: tokens that all of them begin with.
    """

    def __init__(
        self, tokenize: Tokenize, text: str, head: Tokens, anchor: int, dropped: Tokens
    ) -> None:
        self.head = head
        self._tokenize, self._text, self._anchor, self._dropped = tokenize, text, anchor, dropped

    def tail(self, cut: int, ending: str) -> Tokens:
        """What follows `head`.

        Raises:
            SeamBroken: this cannot be told from the text behind the anchor.
        """
        tokens = self._tokenize(self._text[self._anchor : cut] + ending)
        dropped = len(self._dropped)
        if not np.array_equal(tokens[:dropped], self._dropped):
            raise SeamBroken
        return tokens[dropped:]


def whole_texts(tokenize: Tokenize, text: str) -> Seam:
    """No seam: every text is tokenized from its beginning."""
    empty = np.zeros(0, np.int32)
    return Seam(tokenize, text, empty, 0, empty)


def find_seam(
    tokenize: Tokenize, text: str, whole: Tokens, cut: int, ending: str, before: int
) -> Seam:
    """A seam for cuts from character `before` on; `whole` has the tokens of `text[:cut] + ending`.

    Without one, `whole_texts`.
    """
    anchor = text.rfind(" ", 0, max(before - ANCHOR_CHARACTERS, 0))
    if anchor > 0:
        end = tokenize(text[anchor:cut] + ending)
        length = min(len(end), len(whole))
        differs = np.flatnonzero(whole[len(whole) - length :] != end[len(end) - length :])
        same = length - 1 - int(differs[-1]) if len(differs) else length
        if len(end) - same <= MAX_DROPPED_TOKENS:
            dropped = end[: len(end) - same]
            return Seam(tokenize, text, whole[: len(whole) - same], anchor, dropped)
    return whole_texts(tokenize, text)


@dataclass(frozen=True)
class Cut:
    """Where the haystack ends, and the prompts of all endings: `head` and a tail each."""

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
        The cut; or, where `guess` is not near it or nothing between fits, by how many tokens it
        should be later.
    """
    longest = max(endings, key=lambda e: len(tokenize(e.text)) + e.answer_tokens)
    whole = tokenize(text[:guess] + longest.text)
    missing = limit - longest.answer_tokens - len(whole)
    if abs(missing) > NEAR_TOKENS:
        return missing
    low, high = max(within[0], guess - SEARCH_CHARACTERS), min(within[1], guess + SEARCH_CHARACTERS)
    places = [i for i in range(low, high + 1) if i == len(text) or text[i] == " "]
    seam = find_seam(tokenize, text, whole, guess, longest.text, low)
    try:
        found = _last_fitting(seam, places, longest, endings, limit)
        if found is not None and found.at != guess:
            tail = found.tails[endings.index(longest)]
            whole = tokenize(text[: found.at] + longest.text)
            if not np.array_equal(whole, np.concatenate([seam.head, tail])):
                raise SeamBroken
    except SeamBroken:
        seam = whole_texts(tokenize, text)
        found = _last_fitting(seam, places, longest, endings, limit)
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
    """With how many equal tokens both begin."""
    length = min(len(first), len(second))
    differs = np.flatnonzero(first[:length] != second[:length])
    return int(differs[0]) if len(differs) else length
