"""Runs prompts that share a prefix on forks of it, several in one batch.

Sequence 0 holds the prefix, and only `prefill` changes it. What the rests of the prompts have in
common is decoded once on a fork of it, `STEM`; each prompt is a fork of that, and each candidate
answer a fork of its prompt.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from quantkit.core.errors import GateError
from quantkit.llamacpp.llama import EVERY, Context, Logits, Span, Tokens, Vocabulary
from quantkit.llamacpp.settings import Reply

BASE, STEM, FIRST = 0, 1, 2
TEST_TOKENS = 96
"""Of the self-test's prefix, beyond a sliding window if the model has one."""
TEST_TAIL = 12
RATE_TOKENS = 12
"""Tokens decoded one by one to measure the speed."""


@dataclass(frozen=True)
class Prompt:
    """The rest of a prompt after the prefix.

    Attributes:
        tokens: of the rest.
        candidates: answers to score, the right one first.
        answer_tokens: limit for the generated answer.
    """

    tokens: Tokens
    candidates: Sequence[Tokens]
    answer_tokens: int


@dataclass(frozen=True)
class Slots:
    """Number of sequences that are decoded in one batch.

    Attributes:
        questions: prompts in a batch.
        candidates: candidates of one prompt in a batch.
    """

    questions: int
    candidates: int

    @property
    def sequences(self) -> int:
        return FIRST + self.questions + self.candidates

    def fewer(self) -> Self | None:
        """Half as many questions, or candidates if there is one question; None if one of each."""
        if self.questions > 1:
            return replace(self, questions=self.questions // 2)
        if self.candidates > 1:
            return replace(self, candidates=self.candidates // 2)
        return None


class PromptRunner:
    """Runs prompts after the growing prefix of a context.

    Args:
        slots: the context must have enough sequences, cells and outputs for them.
        advance: called with the number of decoded prompt tokens.
        visible: special tokens that are kept in the text of answers.
    """

    def __init__(
        self,
        context: Context,
        vocab: Vocabulary,
        slots: Slots,
        advance: Callable[[int], None] = lambda _tokens: None,
        visible: Sequence[str] = (),
    ) -> None:
        self._context, self._vocab, self._slots = context, vocab, slots
        self._advance = advance
        tokenized = [vocab.tokenize(text) for text in visible]
        self._visible = [int(tokens[0]) for tokens in tokenized if len(tokens) == 1]

    def ask(
        self,
        position: int,
        prompts: Sequence[Prompt],
        on_answer: Callable[[int, Reply], None],
        wanted: Callable[[int], bool] = lambda _place: True,
    ) -> None:
        """Run `prompts` after the first `position` tokens of the prefix, in order.

        Args:
            on_answer: called with the index in `prompts` and the reply.
            wanted: whether the reply at an index is needed. A batch is run as a whole if any of
                its replies is, because its size influences rounding.
        """
        stem = _shared([prompt.tokens for prompt in prompts])
        parent, begin = BASE, position + len(stem)
        if len(stem):
            self._context.fork(BASE, STEM)
            self._context.prefill(stem, position, STEM)
            self._advance(len(stem) * sum(map(wanted, range(len(prompts)))))
            parent = STEM
        size = self._slots.questions
        for at in range(0, len(prompts), size):
            group = prompts[at : at + size]
            if not any(wanted(at + number) for number in range(len(group))):
                continue
            for number, reply in enumerate(self._group(parent, begin, len(stem), group)):
                if wanted(at + number):
                    on_answer(at + number, reply)
        self._context.drop(STEM)

    def ask_without_fork(self, position: int, prompt: Prompt) -> Reply:
        """Run a prompt on the prefix itself, which is lost; candidates are not scored."""
        logits = self._context.decode(prompt.tokens, position, BASE)
        check_finite([logits])
        self._advance(len(prompt.tokens))
        end = position + len(prompt.tokens)
        ((tokens, truncated),) = self._greedy([BASE], [end], [prompt.answer_tokens], [logits])
        return Reply(self._vocab.text(tokens, self._visible), truncated, (), None)

    def probe(self, position: int, tokens: Tokens) -> Logits:
        """Logits after `tokens` on a fork of the prefix, shape (vocabulary,)."""
        self._context.fork(BASE, STEM)
        logits = self._context.decode(tokens, position, STEM)
        self._context.drop(STEM)
        return logits

    def rate(self, position: int, first: int) -> tuple[int, float]:
        """Decode tokens one by one after the prefix: (tokens, seconds)."""
        context = self._context
        context.fork(BASE, STEM)
        token = int(context.decode(np.array([first], np.int32), position, STEM).argmax())
        began = time.perf_counter()
        for at in range(1, RATE_TOKENS + 1):
            token = int(context.decode(np.array([token], np.int32), position + at, STEM).argmax())
        seconds = time.perf_counter() - began
        context.drop(STEM)
        return RATE_TOKENS, seconds

    def _group(
        self, parent: int, position: int, skipped: int, group: Sequence[Prompt]
    ) -> list[Reply]:
        """Run prompts whose tokens after the first `skipped` begin at `position`."""
        slots = [FIRST + number for number in range(len(group))]
        tails = [one.tokens[skipped:] for one in group]
        logits = self._open(parent, position, slots, tails)
        check_finite(logits)
        ends = [position + len(tail) for tail in tails]
        scored = [
            self._score(slot, end, one.candidates, first)
            for slot, end, one, first in zip(slots, ends, group, logits, strict=True)
        ]
        limits = [one.answer_tokens for one in group]
        answers = self._greedy(slots, ends, limits, logits)
        for slot in slots:
            self._context.drop(slot)
        return [
            Reply(self._vocab.text(tokens, self._visible), truncated, found, rank)
            for (tokens, truncated), (found, rank) in zip(answers, scored, strict=True)
        ]

    def _open(
        self, parent: int, position: int, slots: Sequence[int], tails: Sequence[Tokens]
    ) -> list[Logits]:
        """Decode each tail on its own fork of `parent`; logits of the next tokens."""
        context = self._context
        for slot in slots:
            context.fork(parent, slot)
        size = context.settings.batch_tokens
        if sum(map(len, tails)) <= size:
            spans = [Span(slot, position, tail) for slot, tail in zip(slots, tails, strict=True)]
            self._advance(sum(map(len, tails)))
            return [rows[0].copy() for rows in context.decode_spans(spans)]
        logits = []
        for slot, tail in zip(slots, tails, strict=True):
            long = (len(tail) - 1) // size * size
            for at in range(0, long, size):
                context.prefill(tail[at : at + size], position + at, slot)
                context.wait()
                self._advance(size)
            logits.append(context.decode(tail[long:], position + long, slot))
            self._advance(len(tail) - long)
        return logits

    def _score(
        self, slot: int, end: int, candidates: Sequence[Tokens], first: Logits
    ) -> tuple[tuple[float, ...], int | None]:
        """Log-probability of each candidate, and the worst rank of the first one's tokens."""
        if not candidates:
            return (), None
        context, begin = self._context, FIRST + self._slots.questions
        found, worst = list[float](), 0
        for at in range(0, len(candidates), self._slots.candidates):
            group = candidates[at : at + self._slots.candidates]
            spans = [
                Span(begin + number, end, tokens[:-1], EVERY)
                for number, tokens in enumerate(group)
                if len(tokens) > 1
            ]
            for span in spans:
                context.fork(slot, span.sequence)
            rest = context.decode_spans(spans)
            check_finite(rest)
            following = iter(rest)
            for tokens in group:
                more = [next(following)] if len(tokens) > 1 else []
                rows = np.concatenate([first[None], *more])
                found.append(log_probability(rows, tokens))
                if len(found) == 1:
                    worst = worst_rank(rows, tokens)
            for span in spans:
                context.drop(span.sequence)
        return tuple(found), worst

    def _greedy(
        self,
        slots: Sequence[int],
        ends: Sequence[int],
        limits: Sequence[int],
        logits: Sequence[Logits],
    ) -> list[tuple[list[int], bool]]:
        """Generate on all slots in one batch: (tokens, whether the limit ended it) of each."""
        answers: list[tuple[list[int], bool]] = [([], True) for _ in slots]
        following = {number: int(row.argmax()) for number, row in enumerate(logits)}
        while following:
            spans, numbers = [], []
            for number, token in following.items():
                tokens, _ = answers[number]
                if self._vocab.is_end(token):
                    answers[number] = (tokens, False)
                    continue
                tokens.append(token)
                if len(tokens) < limits[number]:
                    at = ends[number] + len(tokens) - 1
                    spans.append(Span(slots[number], at, np.array([token], np.int32)))
                    numbers.append(number)
            rows = self._context.decode_spans(spans)
            following = {n: int(row[0].argmax()) for n, row in zip(numbers, rows, strict=True)}
        return answers


def check_finite(logits: Sequence[Logits]) -> None:
    """Check that logits are numbers.

    Raises:
        GateError: the file is broken, or this device computes it wrongly.
    """
    if not all(np.isfinite(rows).all() for rows in logits):
        raise GateError(
            "the model's logits are not finite: the file is broken, or this device computes it "
            "wrongly; build it again, or run 'quantkit doctor'"
        )


def log_probability(rows: Logits, tokens: Tokens) -> float:
    """Log-probability of `tokens`, nats, with `rows` the logits before each of them."""
    wide = rows.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    sums = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
    return float((wide[np.arange(len(tokens)), tokens] - sums).sum())


def worst_rank(rows: Logits, tokens: Tokens) -> int:
    """The highest rank, from 1, of one of `tokens` in the vocabulary at its position."""
    own = rows[np.arange(len(tokens)), tokens]
    return int(1 + (rows > own[:, None]).sum(axis=1).max())


def relative_difference(found: Logits, expected: Logits) -> float:
    """Largest difference of two rows of logits, relative to the largest of `expected`."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))


@dataclass(frozen=True)
class ForkTest:
    """Largest relative differences of logits on forks from those of a fresh decode.

    Attributes:
        alone: of single prompts.
        together: of prompts in one batch, on sequences that were used before.
    """

    alone: float
    together: float


def try_forks(context: Context, vocab: Vocabulary, slots: Slots) -> ForkTest:
    """Compare random prompts on forks with fresh decodes; empties `context`."""
    rng = np.random.default_rng(1)
    sizes = [TEST_TAIL + number % 3 for number in range(slots.questions)]
    room = context.settings.context_tokens - TEST_TOKENS - sum(sizes)
    window = min(context.model.window_tokens, max(room, 0))
    head = rng.integers(0, vocab.size, TEST_TOKENS + window, dtype=np.int32)
    tails = [rng.integers(0, vocab.size, size, dtype=np.int32) for size in sizes]
    context.clear()
    context.prefill(head, 0)
    runner = PromptRunner(context, vocab, slots)
    alone = [runner.probe(len(head), tail) for tail in tails]
    places = [FIRST + number for number in range(len(tails))]
    for _ in range(2):  # the second time on used sequences
        together = runner._open(BASE, len(head), places, tails)
        for place in places:
            context.drop(place)
    # a window makes the head long: the first and the last alone are decoded afresh
    fresh = dict[int, Logits]()
    for number in {0, len(tails) - 1}:
        context.clear()
        context.prefill(head, 0)
        fresh[number] = context.decode(tails[number], len(head))
    context.clear()
    check_finite([*fresh.values(), *alone, *together])
    expected = [fresh.get(number, logits) for number, logits in enumerate(alone)]
    return ForkTest(
        max(map(relative_difference, alone, expected)),
        max(map(relative_difference, together, expected)),
    )


def _shared(rows: Sequence[Tokens]) -> Tokens:
    """The common prefix of two or more rows, which leaves each at least one token."""
    if len(rows) < 2:
        return rows[0][:0]
    size = min(map(len, rows)) - 1
    block = np.stack([row[:size] for row in rows])
    differs = (block != block[0]).any(axis=0)
    return rows[0][: int(differs.argmax()) if differs.any() else size]
