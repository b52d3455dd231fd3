"""Asks questions behind a prefix that is decoded once: on forks of it, side by side.

Sequence 0 holds the prefix, and only `prefill` changes it. What the questions' own parts have in
common is decoded once on a fork of it, `STEM`; each question is a fork of that; the right answer
and the wrong ones that it is compared with are forks of the question.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from quantkit.core.errors import GateError
from quantkit.llamacpp.llama import Context, Logits, Span, Tokens, Vocabulary
from quantkit.llamacpp.said import Said

BASE, STEM, FIRST = 0, 1, 2
TEST_TOKENS = 96
TEST_TAIL = 12
RATE_TOKENS = 12
"""Decoded one by one to see how fast that is."""


@dataclass(frozen=True)
class Asked:
    """One question behind a prefix, in tokens.

    Attributes:
        tokens: the rest of its prompt.
        candidates: the right answer, then wrong ones, whose log-probabilities are wanted.
        answer_tokens: limit of the answer.
    """

    tokens: Tokens
    candidates: Sequence[Tokens]
    answer_tokens: int


@dataclass(frozen=True)
class Seats:
    """How many sequences are asked at a time.

    Attributes:
        questions: side by side.
        candidates: of one question, side by side.
    """

    questions: int
    candidates: int

    @property
    def sequences(self) -> int:
        return FIRST + self.questions + self.candidates

    def fewer(self) -> Self | None:
        """Half as many, of questions before candidates; None where it is one of each."""
        if self.questions > 1:
            return replace(self, questions=self.questions // 2)
        if self.candidates > 1:
            return replace(self, candidates=self.candidates // 2)
        return None


class Questioner:
    """A context whose prefix grows, and the questions that are asked behind it.

    Args:
        seats: the context must have as many sequences, cells and outputs.
        advance: is told how many tokens of questions are decoded.
        kept: special tokens that stay in answers, as text.
    """

    def __init__(
        self,
        context: Context,
        vocab: Vocabulary,
        seats: Seats,
        advance: Callable[[int], None] = lambda _tokens: None,
        kept: Sequence[str] = (),
    ) -> None:
        self._context, self._vocab, self._seats = context, vocab, seats
        self._advance = advance
        alone = [vocab.tokenize(text) for text in kept]
        self._kept = [int(tokens[0]) for tokens in alone if len(tokens) == 1]

    def ask(
        self,
        position: int,
        asked: Sequence[Asked],
        on_answer: Callable[[int, Said], None],
        wanted: Callable[[int], bool] = lambda _place: True,
    ) -> None:
        """Ask behind the first `position` tokens of the prefix; answers come in order.

        Args:
            on_answer: is given the place in `asked` and what was said.
            wanted: whether the answer at a place is. Those side by side with it are asked again:
                how many are decoded together decides how they are rounded.
        """
        stem = _shared([one.tokens for one in asked])
        parent, begin = BASE, position + len(stem)
        if len(stem):
            self._context.fork(BASE, STEM)
            self._context.prefill(stem, position, STEM)
            self._advance(len(stem) * sum(map(wanted, range(len(asked)))))
            parent = STEM
        size = self._seats.questions
        for at in range(0, len(asked), size):
            group = asked[at : at + size]
            if not any(wanted(at + number) for number in range(len(group))):
                continue
            for number, said in enumerate(self._group(parent, begin, len(stem), group)):
                if wanted(at + number):
                    on_answer(at + number, said)
        self._context.drop(STEM)

    def ask_on_base(self, position: int, asked: Asked) -> Said:
        """Ask without a fork; the prefix is spent, and candidates are not looked at."""
        logits = self._context.decode(asked.tokens, position, BASE)
        check_finite([logits])
        self._advance(len(asked.tokens))
        end = position + len(asked.tokens)
        ((tokens, truncated),) = self._greedy([BASE], [end], [asked.answer_tokens], [logits])
        return Said(self._vocab.text(tokens, self._kept), truncated, (), None)

    def probe(self, position: int, tokens: Tokens) -> Logits:
        """Logits behind `tokens` on a fork of the prefix, shape (vocabulary,)."""
        self._context.fork(BASE, STEM)
        logits = self._context.decode(tokens, position, STEM)
        self._context.drop(STEM)
        return logits

    def rate(self, position: int, first: int) -> tuple[int, float]:
        """Tokens decoded alone, one after the other behind the prefix, and the seconds it took."""
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
        self, parent: int, position: int, skipped: int, group: Sequence[Asked]
    ) -> list[Said]:
        """Questions whose own parts, but for their first `skipped` tokens, stand at `position`."""
        seats = [FIRST + number for number in range(len(group))]
        tails = [one.tokens[skipped:] for one in group]
        logits = self._open(parent, position, seats, tails)
        check_finite(logits)
        ends = [position + len(tail) for tail in tails]
        scored = [
            self._score(seat, end, one.candidates, first)
            for seat, end, one, first in zip(seats, ends, group, logits, strict=True)
        ]
        limits = [one.answer_tokens for one in group]
        answers = self._greedy(seats, ends, limits, logits)
        for seat in seats:
            self._context.drop(seat)
        return [
            Said(self._vocab.text(tokens, self._kept), truncated, found, rank)
            for (tokens, truncated), (found, rank) in zip(answers, scored, strict=True)
        ]

    def _open(
        self, parent: int, position: int, seats: Sequence[int], tails: Sequence[Tokens]
    ) -> list[Logits]:
        """Decode each tail on its own fork of `parent`: logits of the tokens that follow."""
        context = self._context
        for seat in seats:
            context.fork(parent, seat)
        size = context.settings.batch_tokens
        if sum(map(len, tails)) <= size:
            spans = [Span(seat, position, tail) for seat, tail in zip(seats, tails, strict=True)]
            self._advance(sum(map(len, tails)))
            return [rows[0] for rows in context.decode_spans(spans)]
        logits = []
        for seat, tail in zip(seats, tails, strict=True):
            long = (len(tail) - 1) // size * size
            for at in range(0, long, size):
                context.prefill(tail[at : at + size], position + at, seat)
                context.wait()
                self._advance(size)
            logits.append(context.decode(tail[long:], position + long, seat))
            self._advance(len(tail) - long)
        return logits

    def _score(
        self, seat: int, end: int, candidates: Sequence[Tokens], first: Logits
    ) -> tuple[tuple[float, ...], int | None]:
        """Log-probability of each candidate as the answer, and the first one's worst rank."""
        if not candidates:
            return (), None
        context, begin = self._context, FIRST + self._seats.questions
        found: list[float] = []
        worst = 0
        for at in range(0, len(candidates), self._seats.candidates):
            group = candidates[at : at + self._seats.candidates]
            spans = [
                Span(begin + number, end, tokens[:-1], every=True)
                for number, tokens in enumerate(group)
                if len(tokens) > 1
            ]
            for span in spans:
                context.fork(seat, span.sequence)
            rest = {
                span.sequence - begin: rows
                for span, rows in zip(
                    spans, context.decode_spans(spans) if spans else [], strict=True
                )
            }
            for span in spans:
                context.drop(span.sequence)
            check_finite(list(rest.values()))
            for number, tokens in enumerate(group):
                rows = first[None]
                if number in rest:
                    rows = np.concatenate([rows, rest[number]])
                found.append(log_probability(rows, tokens))
                if len(found) == 1:
                    worst = worst_rank(rows, tokens)
        return tuple(found), worst

    def _greedy(
        self,
        seats: Sequence[int],
        ends: Sequence[int],
        limits: Sequence[int],
        logits: Sequence[Logits],
    ) -> list[tuple[list[int], bool]]:
        """Answer on every seat at once: (tokens, whether the limit stopped it) of each."""
        answers: list[tuple[list[int], bool]] = [([], True) for _ in seats]
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
                    spans.append(Span(seats[number], at, np.array([token], np.int32)))
                    numbers.append(number)
            rows = self._context.decode_spans(spans) if spans else []
            following = {n: int(row[0].argmax()) for n, row in zip(numbers, rows, strict=True)}
        return answers


def check_finite(logits: Sequence[Logits]) -> None:
    """Fail a model whose logits are no numbers, before they are taken for an answer.

    Raises:
        GateError: the file is broken, or this device computes it wrongly.
    """
    if not all(np.isfinite(rows).all() for rows in logits):
        raise GateError(
            "the model's logits are not numbers: the file is broken, or this device computes it "
            "wrongly; build it again, or run 'quantkit doctor'"
        )


def log_probability(rows: Logits, tokens: Tokens) -> float:
    """Of `tokens` one after the other, nats; `rows` are the logits before each of them."""
    wide = rows.astype(np.float64)
    top = wide.max(axis=1, keepdims=True)
    sums = top[:, 0] + np.log(np.exp(wide - top).sum(axis=1))
    return float((wide[np.arange(len(tokens)), tokens] - sums).sum())


def worst_rank(rows: Logits, tokens: Tokens) -> int:
    """The highest rank, from 1, that one of `tokens` has among the vocabulary at its place."""
    own = rows[np.arange(len(tokens)), tokens]
    return int(1 + (rows > own[:, None]).sum(axis=1).max())


def relative_difference(found: Logits, expected: Logits) -> float:
    """Largest difference of two rows of logits, in units of the largest of `expected`."""
    return float(np.abs(found - expected).max() / max(float(np.abs(expected).max()), 1e-6))


@dataclass(frozen=True)
class ForkTest:
    """Largest relative differences of logits from those of a fresh decode.

    Attributes:
        alone: of a question on a fork, by itself.
        together: of questions side by side on forks, after others on these sequences.
    """

    alone: float
    together: float


def try_forks(context: Context, vocab: Vocabulary, seats: Seats) -> ForkTest:
    """Whether questions on forks are answered as after a decode of their own; empties the context.

    The tokens are drawn, not meant: every layer sees something else at every position.
    """
    rng = np.random.default_rng(1)
    head = rng.integers(0, vocab.size, TEST_TOKENS, dtype=np.int32)
    sizes = [TEST_TAIL + number % 3 for number in range(seats.questions)]
    tails = [rng.integers(0, vocab.size, size, dtype=np.int32) for size in sizes]
    context.clear()
    context.prefill(head, 0)
    questioner = Questioner(context, vocab, seats)
    alone = [questioner.probe(len(head), tail) for tail in tails]
    places = [FIRST + number for number in range(len(tails))]
    for _ in range(2):  # the second time on sequences that have held something else
        together = questioner._open(BASE, len(head), places, tails)
        for place in places:
            context.drop(place)
    fresh = []
    for tail in tails:
        context.clear()
        context.prefill(head, 0)
        fresh.append(context.decode(tail, len(head)))
    context.clear()
    check_finite([*fresh, *alone, *together])
    return ForkTest(
        max(map(relative_difference, alone, fresh)), max(map(relative_difference, together, fresh))
    )


def _shared(rows: Sequence[Tokens]) -> Tokens:
    """What all of two or more rows begin with; each keeps one token of its own at least."""
    if len(rows) < 2:
        return rows[0][:0]
    size = min(map(len, rows)) - 1
    block = np.stack([row[:size] for row in rows])
    differs = (block != block[0]).any(axis=0)
    return rows[0][: int(differs.argmax()) if differs.any() else size]
