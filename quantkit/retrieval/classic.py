"""One needle a prompt, at chosen lengths and depths; prompts share what comes before the needle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.retrieval.branches import Prompts, Question, Tokenize, Tokens
from quantkit.retrieval.branching import (
    branch,
    candidate_tokens,
    check_values,
    leaving,
    longest_tokens,
    opening,
)
from quantkit.retrieval.chat import Frame
from quantkit.retrieval.cutting import Cut, Ending, find_cut
from quantkit.retrieval.layout import GUARD_TOKENS, Piece
from quantkit.retrieval.needles import Needle
from quantkit.retrieval.pools import KeyPool, ValuePool, numbers_in
from quantkit.retrieval.writing import Sentences, Written, write

ROUNDS = 8
"""Of correcting where a prompt is cut by the tokens of the whole."""


@dataclass(frozen=True)
class _Prompt:
    """One prompt: `begins_at` and `size` are the tokens before the needle and of the haystack."""

    needle: Needle
    ending: Ending
    begins_at: int
    size: int
    written: Written
    cut: Cut


def classic_prompts(
    tokenize: Tokenize,
    frame: Frame,
    haystack: Sequence[str],
    recipe: RetrievalRecipe,
    seed: int,
    bos: int | None = None,
) -> Prompts:
    """The prompts of one seed: a needle for each length and depth of `recipe`.

    The stream is the haystack without needles, and a branch leaves it where its needle stands.

    Args:
        frame: with `SINGLE_INSTRUCTION`.
        haystack: sentences; taken in order from a seeded one on, none twice.
        bos: token to begin with, where the frame does not begin with it.

    Raises:
        InputError: the haystack or a context is too short.
    """
    lengths = sorted(set(recipe.context_tokens))
    rng = random.Random(f"classic/{seed}")
    sentences = Sentences(tokenize, haystack, rng)
    keys = KeyPool(rng, len(lengths) * len(recipe.depths))
    forbidden = numbers_in(frame.text(" ".join(haystack), ""), recipe.digits)
    values = ValuePool(rng, recipe.digits, forbidden)
    begin = opening(tokenize, frame, bos)
    stream, branches = None, []
    for length in reversed(lengths):
        for index, depth in enumerate(recipe.depths):
            needle = Needle(keys.take(), values.take())
            made = _filled(
                tokenize, frame, sentences, needle, depth, length, len(begin), recipe.answer_tokens
            )
            check_values(made.written.text, [needle.value])
            if stream is None:  # the longest length comes first
                stream = _stream(tokenize, frame, sentences, made)
            question = Question(
                context_tokens=length,
                seed=seed,
                task="single",
                index=index,
                depth=made.begins_at / made.size,
                key=needle.key,
                values=(needle.value,),
                lures=(),
                answer_tokens=made.ending.answer_tokens,
            )
            wanted = () if recipe.thinking else question.values
            candidates = candidate_tokens(made.cut, 0, made.ending, frame, wanted)
            leaves_at = leaving(stream, [made.cut])
            own = branch(made.cut, 0, leaves_at, question, candidates, begin)
            asking = len(tokenize(made.ending.text))
            branches.append(replace(own, haystack_tokens=max(len(own.tokens) - asking, 0)))
    branches.sort(key=lambda one: (one.leaves_at, one.question.context_tokens))
    assert stream is not None
    whole = np.concatenate([begin, stream])[: branches[-1].leaves_at]
    return Prompts(whole, tuple(branches), dict.fromkeys(lengths, 1))


def _filled(
    tokenize: Tokenize,
    frame: Frame,
    sentences: Sentences,
    needle: Needle,
    depth: float,
    length: int,
    begin_tokens: int,
    answer_tokens: int,
) -> _Prompt:
    """The prompt of `length` tokens with the needle at `depth`, as near as a boundary allows."""
    ending = Ending(f"{frame.between}{needle.question}{frame.after}", answer_tokens)
    limit = length - begin_tokens
    size = limit - len(tokenize(frame.before)) - longest_tokens(tokenize, [ending])
    told = sentences.count(needle.sentence)
    if size < 2 * (told + GUARD_TOKENS):
        raise InputError(
            f"a context of {length} tokens leaves {max(size, 0)} for the haystack, and its needle "
            f"takes {told}; use a longer context"
        )
    for _ in range(ROUNDS):
        pieces, at = [], 0
        wanted = min(depth * size, size - told - GUARD_TOKENS)
        hidden_at = None
        index = 0
        while at < size + GUARD_TOKENS or hidden_at is None:
            tokens = sentences.tokens_of(index)
            if tokens is None:
                raise InputError(
                    f"the haystack fills only {at} of {length} tokens without repeating; give a "
                    "longer text with --haystack"
                )
            # before the sentence that reaches beyond the wanted place, or after its first half
            nearer = at + tokens / 2 > wanted or at + tokens > size - told - GUARD_TOKENS
            if hidden_at is None and nearer:
                hidden_at = at
                pieces.append(Piece(True, 0, at, told))
                at += told
            pieces.append(Piece(False, index, at, tokens))
            at, index = at + tokens, index + 1
        written = write(frame.before, pieces, sentences, [needle.sentence])
        within, guess = written.place(size)
        found = find_cut(tokenize, written.text, within, guess, [ending], limit)
        if isinstance(found, Cut):
            return _Prompt(needle, ending, hidden_at, size, written, found)
        size += found
    raise AssertionError(f"no cut at {length} tokens was found")


def _stream(tokenize: Tokenize, frame: Frame, sentences: Sentences, made: _Prompt) -> Tokens:
    """The haystack of a prompt, a little longer, without its needle."""
    pieces = [piece for piece in made.written.pieces if not piece.hidden]
    return tokenize(write(frame.before, pieces, sentences, []).text)
