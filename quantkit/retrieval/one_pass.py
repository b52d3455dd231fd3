"""One haystack for a whole ladder of lengths: the questions of each branch off at its cut."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import InputError
from quantkit.retrieval.branches import Prompts, Question, Tokenize
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
from quantkit.retrieval.layout import Item, crowded, lay_out
from quantkit.retrieval.pools import numbers_in
from quantkit.retrieval.questions import Lures, draw_questions, grid_keys
from quantkit.retrieval.tasks import Asking, Hidden, answer_limit
from quantkit.retrieval.writing import Sentences, Written, write

ROUNDS = 8
"""Of planning by the tokens of single sentences and correcting by those of the whole."""


@dataclass(frozen=True)
class _Rung:
    """One length: the tokens of prompt and answer, and what is asked."""

    context_tokens: int
    limit: int
    askings: tuple[Asking, ...]
    endings: tuple[Ending, ...]


def one_pass_prompts(
    tokenize: Tokenize,
    frame: Frame,
    haystack: Sequence[str],
    recipe: RetrievalRecipe,
    seed: int,
    bos: int | None = None,
) -> Prompts:
    """The prompts of one seed: all branches of one length leave the stream at the same token.

    Args:
        frame: with `INSTRUCTION`.
        haystack: sentences; taken in order from a seeded one on, none twice.
        recipe: its `context_tokens` are the ladder.
        bos: token to begin with, where the frame does not begin with it.

    Raises:
        InputError: the haystack is too short, a context too short for what is hidden in it, or
            keys or values run out.
    """
    lengths = sorted(set(recipe.context_tokens))
    rng = random.Random(f"one-pass/{seed}")
    sentences = Sentences(tokenize, haystack, rng)
    forbidden = numbers_in(frame.text(" ".join(haystack), ""), recipe.digits)
    begin = opening(tokenize, frame, bos)
    asked = draw_questions(recipe, len(lengths), rng, forbidden)
    rungs = [
        _Rung(length, length - len(begin), tuple(some), _endings(some, frame, recipe))
        for length, some in zip(lengths, asked, strict=True)
    ]
    written, planned, cuts = _filled(tokenize, frame, sentences, rungs)
    told = [hidden for some in asked for asking in some for hidden in asking.hidden]
    check_values(written.text, [hidden.value for hidden in told if hidden.value])
    places = written.hidden()
    grid = set(grid_keys(asking for some in asked for asking in some))
    stream = np.concatenate([cuts[-1].seam.head, cuts[-1].tails[0]])
    stream = stream[: leaving(stream, cuts[-1:])]
    branches, keys, first = [], {}, 0
    for rung, size, cut in zip(rungs, planned, cuts, strict=True):
        standing = [h for i, h in enumerate(told) if written.ends[places[i]] <= cut.at]
        _check_hidden(rung, standing)
        keys[rung.context_tokens] = len(grid & {hidden.key for hidden in standing})
        lures, leaves_at = Lures(standing), leaving(stream, [cut])
        for which, (asking, ending) in enumerate(zip(rung.askings, rung.endings, strict=True)):
            begins = [written.pieces[places[first + i]].begins_at for i in asking.answered_by]
            first += len(asking.hidden)
            own = random.Random(f"{seed}/{rung.context_tokens}/{asking.task}/{asking.index}")
            question = Question(
                context_tokens=rung.context_tokens,
                seed=seed,
                task=asking.task,
                index=asking.index,
                depth=sum(begins) / len(begins) / size if begins else 0.5,
                key=asking.key,
                values=asking.values,
                lures=lures.of(asking, recipe.near_misses, own),
                answer_tokens=ending.answer_tokens,
            )
            answerable = len(question.values) == 1 and not recipe.thinking
            wanted = (*question.values, *question.lures) if answerable else ()
            candidates = candidate_tokens(cut, which, ending, frame, wanted)
            branches.append(branch(cut, which, leaves_at, question, candidates, begin))
    return Prompts(np.concatenate([begin, stream]), tuple(branches), keys)


def _check_hidden(rung: _Rung, standing: Sequence[Hidden]) -> None:
    """See that all that the questions of a length are about stands in its haystack."""
    there = {hidden.sentence for hidden in standing}
    needed = {hidden.sentence for asking in rung.askings for hidden in asking.hidden}
    if not needed <= there:
        raise AssertionError(f"not before {rung.context_tokens} tokens: {needed - there}")


def _endings(
    askings: Sequence[Asking], frame: Frame, recipe: RetrievalRecipe
) -> tuple[Ending, ...]:
    return tuple(
        Ending(
            f"{frame.between}{asking.question}{frame.after}",
            answer_limit(asking.values, recipe.answer_tokens),
        )
        for asking in askings
    )


def _filled(
    tokenize: Tokenize, frame: Frame, sentences: Sentences, rungs: Sequence[_Rung]
) -> tuple[Written, list[int], list[Cut]]:
    """The text, the planned tokens of each haystack, and where each is cut."""
    told = [h for rung in rungs for asking in rung.askings for h in asking.hidden]
    items = [
        Item(place, h.place.at, h.place.until, sentences.count(h.sentence))
        for place, rung in enumerate(rungs)
        for asking in rung.askings
        for h in asking.hidden
    ]
    before = len(tokenize(frame.before))
    planned = [rung.limit - before - longest_tokens(tokenize, rung.endings) for rung in rungs]
    for _ in range(ROUNDS):
        _refuse_crowds(items, planned, rungs)
        pieces = lay_out(items, planned, sentences.tokens_of, sentences.longest)
        if pieces is None:
            have = sum(sentences.tokens_of(i) or 0 for i in range(len(sentences)))
            raise InputError(
                f"the haystack fills only {have} of {rungs[-1].context_tokens} tokens without "
                "repeating; give a longer text with --haystack"
            )
        written = write(frame.before, pieces, sentences, [h.sentence for h in told])
        cuts: list[Cut] = []
        for place, rung in enumerate(rungs):
            within, guess = written.place(planned[place])
            found = find_cut(tokenize, written.text, within, guess, rung.endings, rung.limit)
            if isinstance(found, Cut):
                cuts.append(found)
            else:
                planned[place] += found
        if len(cuts) == len(rungs):
            return written, planned, cuts
    raise AssertionError(f"no cut at {[rung.context_tokens for rung in rungs]} tokens was found")


def _refuse_crowds(items: Sequence[Item], planned: Sequence[int], rungs: Sequence[_Rung]) -> None:
    crowd = crowded(items, planned)
    if crowd is None:
        return
    rung = rungs[crowd.cut]
    raise InputError(
        f"a context of {rung.context_tokens} tokens leaves {max(planned[crowd.cut], 0)} for the "
        f"haystack; the sentences hidden in it take {crowd.hidden_tokens}, and at most two "
        "thirds may be hidden; use a longer context or fewer needles and probes"
    )
