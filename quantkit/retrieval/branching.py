"""From a cut text to branches: where they leave the stream, and what could follow them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from quantkit.retrieval.branches import Branch, Question, Tokenize, Tokens
from quantkit.retrieval.chat import Frame
from quantkit.retrieval.cutting import Cut, Ending, SeamBroken, common_tokens
from quantkit.retrieval.pools import digit_runs


def opening(tokenize: Tokenize, frame: Frame, bos: int | None) -> Tokens:
    """BOS as one token, or none where it is not wanted or the frame begins with it."""
    begin = tokenize(frame.before)[:1]
    if bos is None or (len(begin) and int(begin[0]) == bos):
        return np.zeros(0, np.int32)
    return np.array([bos], np.int32)


def longest_tokens(tokenize: Tokenize, endings: Iterable[Ending]) -> int:
    """Of an ending with its answer."""
    return max(len(tokenize(ending.text)) + ending.answer_tokens for ending in endings)


def leaving(stream: Tokens, cuts: Sequence[Cut]) -> int:
    """How many tokens the stream and all prompts of `cuts` begin with; each prompt has more."""
    least = len(stream)
    for cut in cuts:
        head = cut.seam.head
        shared = common_tokens(head, stream)
        for tail in cut.tails:
            more = common_tokens(tail, stream[shared:]) if shared == len(head) else 0
            least = min(least, shared + more, len(head) + len(tail) - 1)
    return least


def branch(
    cut: Cut,
    which: int,
    leaves_at: int,
    question: Question,
    candidates: tuple[Tokens, ...],
    begin: Tokens,
) -> Branch:
    """The branch of the ending `which` of `cut`; `leaves_at` does not count `begin` (BOS)."""
    head, tail = cut.seam.head, cut.tails[which]
    rest = np.concatenate([head[leaves_at:], tail[max(leaves_at - len(head), 0) :]])
    return Branch(len(begin) + leaves_at, rest.astype(np.int32), question, candidates)


def candidate_tokens(
    cut: Cut, which: int, ending: Ending, frame: Frame, values: Iterable[str]
) -> tuple[Tokens, ...]:
    """Each of `values` as tokens behind the prompt; none where one of them merges with it."""
    tail = cut.tails[which]
    found = []
    for value in values:
        try:
            longer = cut.seam.tail(cut.at, f"{ending.text}{frame.lead}{value}")
        except SeamBroken:
            return ()
        if not np.array_equal(longer[: len(tail)], tail) or len(longer) == len(tail):
            return ()
        found.append(longer[len(tail) :].astype(np.int32))
    return tuple(found)


def check_values(text: str, values: Sequence[str]) -> None:
    """See that each of `values` stands in `text` exactly once, and none within another number."""
    runs = Counter(digit_runs(text))
    inside = Counter(
        run[i : i + size]
        for run in runs
        for size in {len(value) for value in values}
        for i in range(len(run) - size + 1)
    )
    wrong = [value for value in values if runs[value] != 1 or inside[value] != 1]
    if wrong or len(set(values)) < len(values):
        raise AssertionError(f"values do not stand in the text exactly once: {wrong}")
