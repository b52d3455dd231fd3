"""The prompts of a retrieval check.

One-pass: hidden sentences for every length of the ladder stand in one haystack of the longest; its
prompt is decoded once, and at each length the questions branch off. Classic: one needle for each
length and depth; prompts share what comes before it. In both modes a branch is cut out of the
tokens of its whole prompt (ADR 4).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.core.paths import sentences
from quantkit.retrieval.branches import Branch, Frame, Prompts, Question, Tokenize, Tokens, frame_of
from quantkit.retrieval.cutting import Cut, Ending, SeamBroken, common_tokens, find_cut
from quantkit.retrieval.layout import (
    GUARD_TOKENS,
    Item,
    Piece,
    Sentences,
    Written,
    check_room,
    lay_out,
    lay_out_one,
    write,
)
from quantkit.retrieval.needles import SINGLE_INSTRUCTION, KeyPool, Needle, ValuePool, numbers_in
from quantkit.retrieval.tasks import draw_lures, draw_questions, grid_keys, values_by_word

ROUNDS = 8
"""Attempts to plan by the tokens of single sentences and to correct by those of the whole text."""


def all_prompts(
    tokenize: Tokenize,
    template: str | None,
    special: tuple[str, str],
    recipe: RetrievalRecipe,
    haystack: Path | None,
    bos: int | None,
) -> list[Prompts]:
    """The prompts of each seed.

    Args:
        template: the model's chat template, Jinja; `special` are BOS and EOS for it.
        haystack: a text; None: the shipped one.

    Raises:
        InputError: the haystack cannot be read, or as in `prompts_of`.
    """
    frame = frame_of(template, *special, thinking=recipe.thinking)
    some = sentences(haystack)
    return [prompts_of(tokenize, frame, some, recipe, seed, bos) for seed in recipe.seeds]


def prompts_of(
    tokenize: Tokenize,
    frame: Frame,
    haystack: Sequence[str],
    recipe: RetrievalRecipe,
    seed: int,
    bos: int | None = None,
) -> Prompts:
    """The prompts of one seed in the recipe's mode.

    Args:
        frame: with `INSTRUCTION`.
        haystack: sentences; taken in order from a random one on, none twice.
        bos: token to begin with, unless the frame begins with it.

    Raises:
        InputError: the haystack is too short, a context too short for what is hidden in it, or
            keys or values run out.
    """
    if recipe.mode == "classic":
        frame = frame.instructing(SINGLE_INSTRUCTION)
    first = tokenize(frame.before)[:1].tolist()
    begin = np.array([] if bos is None or first == [bos] else [bos], np.int32)
    rng = random.Random(f"{recipe.mode}/{seed}")
    text = Sentences(tokenize, haystack, rng, max(recipe.context_tokens))
    whole = f"{frame.before}{' '.join(haystack)}{frame.between}{frame.after}"
    forbidden = numbers_in(whole, recipe.digits)
    maker = _Maker(tokenize, frame, recipe, seed, begin, text)
    make = _classic if recipe.mode == "classic" else _one_pass
    return make(maker, rng, forbidden)


@dataclass(frozen=True)
class _Maker:
    """What the prompts of one seed are made with; `begin` has BOS or nothing."""

    tokenize: Tokenize
    frame: Frame
    recipe: RetrievalRecipe
    seed: int
    begin: Tokens
    sentences: Sentences

    @property
    def lengths(self) -> list[int]:
        return sorted(set(self.recipe.context_tokens))

    def ending(self, question: str, answer_tokens: int) -> Ending:
        return Ending(f"{self.frame.between}{question}{self.frame.after}", answer_tokens)

    def room(self, length: int, endings: Sequence[Ending]) -> int:
        """About how many tokens of a context are left for its haystack."""
        longest = max(len(self.tokenize(one.text)) + one.answer_tokens for one in endings)
        return length - len(self.begin) - len(self.tokenize(self.frame.before)) - longest

    def cut(self, written: Written, size: int, endings: Sequence[Ending], length: int) -> Cut | int:
        """As `find_cut`, for a haystack of about `size` tokens."""
        within, guess = written.place(size)
        limit = length - len(self.begin)
        return find_cut(self.tokenize, written.text, within, guess, endings, limit)

    def branch(
        self, cut: Cut, which: int, ending: Ending, leaves_at: int, question: Question
    ) -> Branch:
        """The branch of the ending at `which`; `leaves_at` does not count `begin`."""
        head, tail = cut.seam.head, cut.tails[which]
        rest = np.concatenate([head[leaves_at:], tail[max(leaves_at - len(head), 0) :]])
        comparable = len(question.values) == 1 and not self.recipe.thinking
        candidates: list[Tokens] = []
        for value in (*question.values, *question.lures) if comparable else ():
            try:
                longer = cut.seam.tail(cut.at, f"{ending.text}{self.frame.lead}{value}")
            except SeamBroken:
                longer = tail
            if not np.array_equal(longer[: len(tail)], tail) or len(longer) == len(tail):
                candidates = []  # the tokenizer merges prompt and value
                break
            candidates.append(longer[len(tail) :].astype(np.int32))
        at = len(self.begin) + leaves_at
        return Branch(at, rest.astype(np.int32), question, tuple(candidates))


def _leaving(stream: Tokens, cut: Cut) -> int:
    """How many tokens the stream and all prompts of `cut` begin with; each prompt has more."""
    head = cut.seam.head
    shared = common_tokens(head, stream)
    least = len(stream)
    for tail in cut.tails:
        more = common_tokens(tail, stream[shared:]) if shared == len(head) else 0
        least = min(least, shared + more, len(head) + len(tail) - 1)
    return least


def _one_pass(maker: _Maker, rng: random.Random, forbidden: set[str]) -> Prompts:
    """All branches of one length leave the stream at the same token."""
    recipe, lengths = maker.recipe, maker.lengths
    asked = draw_questions(recipe, len(lengths), rng, forbidden)
    endings = [
        [maker.ending(q.question, q.answer_limit(recipe.answer_tokens)) for q in some]
        for some in asked
    ]
    hidden = [one for some in asked for question in some for one in question.hidden]
    items = [
        Item(place, one.place.at, one.place.until, maker.sentences.count(one.sentence))
        for place, some in enumerate(asked)
        for question in some
        for one in question.hidden
    ]

    def lay(sizes: Sequence[int]) -> list[Piece]:
        check_room(items, sizes, lengths)
        return lay_out(items, sizes, maker.sentences.tokens_of, maker.sentences.longest)

    told = [one.sentence for one in hidden]
    written, sizes, cuts = _fill(maker, lengths, endings, told, lay)
    assert all(written.text.count(one.value) == 1 for one in hidden if one.value)
    placed = zip(written.pieces, written.ends, strict=True)
    places = sorted((piece.index, piece.begins_at, end) for piece, end in placed if piece.hidden)
    begins = (begin for _, begin, _ in places)
    grid = set(grid_keys(question for some in asked for question in some))
    stream = np.concatenate([cuts[-1].seam.head, cuts[-1].tails[0]])
    stream = stream[: _leaving(stream, cuts[-1])]
    branches, keys = [], {}
    for length, some, ends, size, cut in zip(lengths, asked, endings, sizes, cuts, strict=True):
        there = [hidden[index] for index, _, end in places if end <= cut.at]
        assert {one for question in some for one in question.hidden} <= set(there)
        keys[length] = len(grid & {one.key for one in there})
        by_word, leaves_at = values_by_word(there), _leaving(stream, cut)
        for which, (question, ending) in enumerate(zip(some, ends, strict=True)):
            own = [next(begins) for _ in question.hidden]
            answering = [own[i] for i in question.answered_by]
            lure_rng = random.Random(f"{maker.seed}/{length}/{question.task}/{question.index}")
            made = Question(
                context_tokens=length, seed=maker.seed, task=question.task, index=question.index,
                depth=sum(answering) / len(answering) / size if answering else 0.5,
                key=question.key, values=question.values,
                lures=draw_lures(question, by_word, recipe.near_misses, lure_rng),
                answer_tokens=ending.answer_tokens,
            )  # fmt: skip
            branches.append(maker.branch(cut, which, ending, leaves_at, made))
    return Prompts(np.concatenate([maker.begin, stream]), tuple(branches), keys)


def _fill(
    maker: _Maker,
    lengths: Sequence[int],
    endings: Sequence[Sequence[Ending]],
    told: Sequence[str],
    lay: Callable[[Sequence[int]], Sequence[Piece]],
) -> tuple[Written, list[int], list[Cut]]:
    """The text, the planned tokens of each haystack, and where each is cut.

    Args:
        told: the hidden sentences.
        lay: planned tokens of each haystack → the text's pieces.
    """
    sizes = [maker.room(length, ends) for length, ends in zip(lengths, endings, strict=True)]
    for _ in range(ROUNDS):
        written = write(maker.frame.before, lay(sizes), maker.sentences, told)
        cuts: list[Cut] = []
        for place, length in enumerate(lengths):
            found = maker.cut(written, sizes[place], endings[place], length)
            if isinstance(found, Cut):
                cuts.append(found)
            else:
                sizes[place] += found
        if len(cuts) == len(lengths):
            return written, sizes, cuts
    raise AssertionError(f"no cut at {lengths} tokens was found")


def _classic(maker: _Maker, rng: random.Random, forbidden: set[str]) -> Prompts:
    """The stream is the haystack without needles; a branch leaves it where its needle stands."""
    recipe, lengths = maker.recipe, maker.lengths
    keys = KeyPool(rng, len(lengths) * len(recipe.depths))
    values = ValuePool(rng, recipe.digits, forbidden)
    stream, branches = None, []
    for length in reversed(lengths):
        for index, depth in enumerate(recipe.depths):
            needle = Needle(keys.take(), values.take())
            ending = maker.ending(needle.question, recipe.answer_tokens)
            written, size, cut = _fill_one(maker, needle, ending, depth, length)
            assert written.text.count(needle.value) == 1
            if stream is None:  # the longest length comes first
                rest = [piece for piece in written.pieces if not piece.hidden]
                stream = maker.tokenize(write(maker.frame.before, rest, maker.sentences, []).text)
            begins_at = next(piece.begins_at for piece in written.pieces if piece.hidden)
            question = Question(
                context_tokens=length, seed=maker.seed, task="single", index=index,
                depth=begins_at / size, key=needle.key, values=(needle.value,), lures=(),
                answer_tokens=ending.answer_tokens,
            )  # fmt: skip
            own = maker.branch(cut, 0, ending, _leaving(stream, cut), question)
            haystack_tokens = max(len(own.tokens) - len(maker.tokenize(ending.text)), 0)
            branches.append(replace(own, haystack_tokens=haystack_tokens))
    branches.sort(key=lambda one: one.rung)
    assert stream is not None
    whole = np.concatenate([maker.begin, stream])[: branches[-1].leaves_at]
    return Prompts(whole, tuple(branches), dict.fromkeys(lengths, 1))


def _fill_one(
    maker: _Maker, needle: Needle, ending: Ending, depth: float, length: int
) -> tuple[Written, int, Cut]:
    """The text with the needle at `depth`, as near as a boundary allows; as `_fill`."""
    size, told = maker.room(length, [ending]), maker.sentences.count(needle.sentence)
    if size < 2 * (told + GUARD_TOKENS):
        raise InputError(
            f"a context of {length} tokens leaves {max(size, 0)} for the haystack, and its needle "
            f"takes {told}; use a longer context"
        )

    def lay(sizes: Sequence[int]) -> list[Piece]:
        return lay_out_one(depth, told, sizes[0], maker.sentences.tokens_of)

    written, sizes, cuts = _fill(maker, [length], [[ending]], [needle.sentence], lay)
    return written, sizes[0], cuts[0]
