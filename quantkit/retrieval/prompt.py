"""One prompt for many questions: a haystack with needles, cut where the questions begin to differ.

The shared prefix is decoded once; each question's tail is decoded on a fork of it. Prefix and tail
are cut out of the tokens of the whole prompt, so the model sees exactly what it would see if each
question were asked on its own.
"""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.retrieval.chat import Frame
from quantkit.retrieval.needles import Needle, draw_needles

Tokens = NDArray[np.int32]
Tokenize = Callable[[str], Tokens]
TRIAL_CHARACTERS = 20_000
"""Enough text to estimate the characters of a token."""


@dataclass(frozen=True)
class Prompt:
    """A haystack's prompt in tokens.

    Attributes:
        prefix: what all questions share.
        tails: by needle, the rest of the prompt that asks for it.
        depths: by needle, its place in the haystack, 0 (begin) to 1 (end), by characters.
    """

    needles: tuple[Needle, ...]
    depths: tuple[float, ...]
    prefix: Tokens
    tails: tuple[Tokens, ...]

    @property
    def tokens(self) -> int:
        """Length of the longest whole prompt."""
        return len(self.prefix) + max(len(tail) for tail in self.tails)


def build_prompt(
    tokenize: Tokenize,
    frame: Frame,
    haystack: Sequence[str],
    *,
    context_tokens: int,
    needles: int,
    digits: int,
    answer_tokens: int,
    seed: int,
) -> Prompt:
    """The longest prompt that leaves room for an answer within `context_tokens`.

    Sentences are taken from a seeded start, in order, without repetition; the needles stand at
    sentence boundaries, one in each of `needles` equal strata of the depth in characters.

    Raises:
        InputError: the haystack is too short, or the context too short for the needles.
    """
    rng = random.Random(f"{seed}/{context_tokens}/{needles}")
    start = rng.randrange(len(haystack))
    rotated = [*haystack[start:], *haystack[:start]]
    joined = " ".join(haystack)
    drawn = draw_needles(rng, needles, digits, _Contained(joined))
    offsets = [rng.random() for _ in drawn]
    limit = context_tokens - answer_tokens

    def size(count: int) -> int:
        text, _ = _insert(rotated[:count], drawn, offsets)
        return len(tokenize(frame.text(text, drawn[0].question)))

    count = _largest(size, limit - _slack(tokenize, drawn), len(rotated), rotated, tokenize)
    if count < needles:
        raise InputError(
            f"a context of {context_tokens} tokens holds {max(count, 0)} sentences beside "
            f"{needles} needles; use a longer context or fewer needles"
        )
    if count == len(rotated):
        raise InputError(
            f"the haystack fills only {size(count)} of {context_tokens} tokens without repeating; "
            "give a longer text with --haystack"
        )
    text, depths = _insert(rotated[:count], drawn, offsets)
    for needle in drawn:
        if text.count(needle.value) != 1:
            raise AssertionError(f"value {needle.value} does not occur exactly once")
    prefix, tails = _cut(tokenize, frame, text, rotated[count - 1], drawn)
    return Prompt(tuple(drawn), tuple(depths), prefix, tails)


class _Contained:
    """`value in _Contained(text)`: values that the haystack already has."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and value in self._text


def _slack(tokenize: Tokenize, needles: Sequence[Needle]) -> int:
    """Tokens by which the longest question exceeds the first."""
    sizes = [len(tokenize(needle.question)) for needle in needles]
    return max(sizes) - sizes[0] + 2


def _insert(
    sentences: Sequence[str], needles: Sequence[Needle], offsets: Sequence[float]
) -> tuple[str, list[float]]:
    """Needle i goes where (i + offset) / needles of the characters are past. Text and depths."""
    begins = [0, *itertools.accumulate(len(sentence) + 1 for sentence in sentences)]
    places: dict[int, list[int]] = {}
    for index, offset in enumerate(offsets):
        wanted = (index + offset) / len(needles) * begins[-1]
        where = min(bisect.bisect_left(begins, wanted), len(sentences) - 1)
        places.setdefault(max(where, 0), []).append(index)
    parts: list[str] = []
    starts = [0] * len(needles)
    at = 0
    for position, sentence in enumerate(sentences):
        for index in places.get(position, ()):
            starts[index] = at
            parts.append(needles[index].sentence)
            at += len(parts[-1]) + 1
        parts.append(sentence)
        at += len(sentence) + 1
    return " ".join(parts), [start / max(at, 1) for start in starts]


def _largest(
    size: Callable[[int], int],
    limit: int,
    available: int,
    sentences: Sequence[str],
    tokenize: Tokenize,
) -> int:
    """The largest sentence count whose prompt has at most `limit` tokens, by guided bisection."""
    trial = " ".join(sentences)[:TRIAL_CHARACTERS]
    characters_a_token = len(trial) / max(len(tokenize(trial)), 1)
    cumulated = np.cumsum([len(sentence) + 1 for sentence in sentences])
    low, high = 0, available  # size(low) fits; size(high + 1) does not, or there are no more
    guess = int(np.searchsorted(cumulated, limit * characters_a_token))
    while low < high:
        middle = min(max(guess, low + 1), high)
        tokens = size(middle)
        if tokens <= limit:
            low = middle
        else:
            high = middle - 1
        missing = (limit - tokens) * characters_a_token
        target = cumulated[middle - 1] + missing
        guess = int(np.searchsorted(cumulated, target))
        if not low < guess <= high:
            guess = (low + high + 1) // 2
    return low


def _cut(
    tokenize: Tokenize, frame: Frame, text: str, last_sentence: str, needles: Sequence[Needle]
) -> tuple[Tokens, tuple[Tokens, ...]]:
    """Shared prefix and tails of the whole prompts, tokenizing the long part only once."""
    whole = tokenize(frame.text(text, needles[0].question))
    anchor = len(text) - len(last_sentence) - 1  # at the space before the last sentence
    ends = [
        tokenize(f"{text[anchor:]}{frame.between}{needle.question}{frame.after}")
        for needle in needles
    ]
    if len(ends[0]) < len(whole) and np.array_equal(whole[-len(ends[0]) :], ends[0]):
        head = whole[: -len(ends[0])]
    else:  # the tokenizer looks across that boundary: pay for each whole prompt
        ends = [tokenize(frame.text(text, needle.question)) for needle in needles]
        head = whole[:0]
    shared = min(len(end) for end in ends) - 1  # every tail keeps at least one token
    first = ends[0]
    for end in ends[1:]:
        same = first[:shared] == end[:shared]
        shared = shared if same.all() else int(np.argmin(same))
    prefix = np.concatenate([head, first[:shared]])
    return prefix, tuple(end[shared:] for end in ends)
