"""The questions of the retrieval check on a running server: self-test, order, costs, answers.

All questions of one length follow each other in one slot, right behind their haystack, which was
sent alone before: so the server has it when they come.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.journal import Journal
from quantkit.core.progress import Progress
from quantkit.llamacpp.endpoint import Refused
from quantkit.llamacpp.server import Completion, LlamaServer, Tokens
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.journaled import answer_line, answer_to, answered_places
from quantkit.retrieval.scoring import THINKING_TAGS

TEST_TAIL = 64
"""Tokens of the test's question that are its own, at most."""
TEST_LIKELIEST = (32, 256)
"""Candidates of the fresh answer that are looked for among those of the other."""
TEST_FLOOR = -10.0
"""Nats: the self-test compares candidates that are likelier. Others hardly touch an answer, and
their logits may be rounded more coarsely."""
TEST_TOLERANCE = 0.25
"""Nats: batches of other sizes round otherwise, by up to 0.028 in llama-server on a CPU (of
candidates down to -15 nats; BF16, Q8_0, Q5_0, Q4_0); a state that is not that of the prefix differs
by 3.5."""
SAME_TOLERANCE = 0.02
"""Nats, of all known candidates: where one token is nearly certain, only the others tell files
apart. On a CPU the same file with the same options gave the same bits; Q8_0 differed from BF16 by
0.026 and more, Q4_0 from Q5_0 by 0.4, and a file with other options (KV type, batch size) from
itself by up to 0.066."""
TESTED = "tested"
"""Key of the journal's lines that hold a `Tested`."""
RANKED = 1000
"""Candidates that a rank is counted among."""

Likeliest = tuple[tuple[int, float], ...]
"""(token, log-probability), from the likeliest down."""


@dataclass(frozen=True)
class Tested:
    """What the self-test found.

    Attributes:
        difference: nats, of log-probabilities after a reused prefix from those after a fresh
            prefill, at most.
        forces: whether the server can be made to say given tokens, and tells their probability.
        likeliest: (token, log-probability) after the fresh prefill: what tells files apart.
    """

    difference: float
    forces: bool
    likeliest: Likeliest


def tests_of(lines: Sequence[str]) -> list[Tested]:
    """A journal's self-tests, each of the same prompt."""
    found = [entry[TESTED] for entry in map(json.loads, lines) if TESTED in entry]
    return [
        Tested(one["difference"], one["forces"], tuple((t, nats) for t, nats in one["likeliest"]))
        for one in found
    ]


def largest_difference(expected: Likeliest, found: Likeliest, floor: float) -> float:
    """Largest difference of log-probabilities, in nats, of what was `expected`.

    Args:
        floor: nats; candidates are compared that are likelier.

    Infinite where it cannot be told: a candidate was not found, none is left, or these are no
    logarithms of probabilities, whose sum is 1 at most.
    """
    compared = {token: nats for token, nats in expected if nats > floor}
    if not compared or sum(math.exp(min(nats, 1.0)) for nats in compared.values()) > 1.01:
        return math.inf
    others = {token: nats for token, nats in found if nats > -math.inf}  # no NaN either
    return max(abs(nats - others.get(token, -math.inf)) for token, nats in compared.items())


def _words(difference: float, limit: float) -> str:
    if math.isinf(difference):
        return "are not of the same tokens, or are none"
    return f"differ by {difference:.2g} nats (limit {limit})"


def _log_probability(said: Completion, tokens: Sequence[int]) -> float | None:
    """Of `tokens` as the beginning of an answer that began so; None where the server knows none."""
    if [step.token for step in said.steps[: len(tokens)]] != list(tokens):
        return None
    values = [step.log_probability for step in said.steps[: len(tokens)]]
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _worst_rank(said: Completion, tokens: Sequence[int]) -> int | None:
    ranks = [step.rank for step in said.steps[: len(tokens)]]
    known = [rank for rank in ranks if rank is not None]
    return max(known) if len(known) == len(ranks) else None


class _Cost:
    """What the server did for one length, as it says in its answers."""

    def __init__(self, context_tokens: int) -> None:
        self._context_tokens = context_tokens
        self._prefilled, self._question_tokens, self._decoded = 0, 0, 0
        self._prefill_seconds, self._decode_seconds = 0.0, 0.0

    def add(self, said: Completion, own_tokens: int) -> None:
        """Count an answer; what was prefilled beyond `own_tokens`, its question's, is haystack."""
        own = min(own_tokens, said.prefilled_tokens)
        more = said.prefilled_tokens - own
        self._question_tokens += own
        self._prefilled += more
        self._prefill_seconds += said.prefill_seconds * more / max(said.prefilled_tokens, 1)
        self._decoded += said.decoded_tokens
        self._decode_seconds += said.decode_seconds if said.decoded_tokens else 0.0

    def line(self, seed: int) -> str:
        """For the journal."""
        rung = {
            "context_tokens": self._context_tokens,
            "prefill_tokens": self._prefilled,
            "prefill_seconds": self._prefill_seconds,
            "question_tokens": self._question_tokens,
            "decode_tokens": self._decoded,
            "decode_seconds": self._decode_seconds,
            "fork_difference": None,
        }
        return json.dumps({"rung": rung, "seed": seed})


class Run:
    """Asks what is not answered yet, and writes down what is.

    Answers that were kept of another model are asked for anew.
    """

    def __init__(
        self, server: LlamaServer, recipe: RetrievalRecipe, journal: Journal, progress: Progress
    ) -> None:
        self._server, self._recipe = server, recipe
        self._journal, self._progress = journal, progress
        self._answered = answered_places(journal.lines)

    def ask_all(self, prompts: Sequence[Prompts]) -> None:
        """Ask every seed's questions; the first of them is the self-test too."""
        haystack = sum(one.prefill_tokens for one in prompts)
        questions = sum(one.question_tokens for one in prompts)
        self._start(prompts)
        self._progress.note(
            f"{haystack:,} tokens of haystack and {questions:,} of questions, as far as the server "
            f"keeps a prefix; one prefill a question would take "
            f"{sum(one.classic_tokens for one in prompts):,}"
        )
        forces, tested_at = self._test(prompts), prompts[0].branches[0].leaves_at
        for one in prompts:
            position = tested_at if one is prompts[0] else 0
            for at, group in itertools.groupby(one.branches, key=lambda b: b.leaves_at):
                left = [branch for branch in group if not self._done(branch)]
                if left:
                    self._reach(one, at, at - position, left[0].question.context_tokens)
                else:
                    self._progress.advance(at - position)
                for branch in left:
                    self._ask(one, branch, forces=forces)
                position = at

    def _start(self, prompts: Sequence[Prompts]) -> None:
        self._progress.start(
            sum(one.prefill_tokens + one.question_tokens for one in prompts),
            "tokens",
            done=sum(len(b.tokens) for one in prompts for b in one.branches if self._done(b)),
        )

    def _test(self, prompts: Sequence[Prompts]) -> bool:
        """Ask a question afresh, and again behind a prefix that another one was asked behind.

        It is the same question in each run, so the fresh answer also tells whether kept answers
        are of the file that is served now; if they are not, they are forgotten.

        Returns:
            Whether the server can be made to say given tokens.

        Raises:
            EnvironmentFault: the answers differ by more than rounding does.
        """
        branch, kept = prompts[0].branches[0], tests_of(self._journal.lines)
        server, prompt = self._server, _prompt(prompts[0], branch)
        head, tail = np.split(prompt, [max(branch.leaves_at, len(prompt) - TEST_TAIL)])
        cost, few, many = _Cost(branch.question.context_tokens), *TEST_LIKELIEST
        on_share = self._advancing(branch.leaves_at)
        fresh = server.prefill(prompt, on_share, likeliest=many, reuse=False)
        cost.add(fresh, 0)
        found = _first_likeliest(fresh)
        if kept:
            self._compare(kept[0].likeliest, found, prompts)
        cost.add(server.prefill(head, lambda share: None), 0)
        cost.add(server.complete(np.concatenate([head, tail[::-1]]), 1), 0)
        again = server.complete(prompt, 1, likeliest=many)
        cost.add(again, 0)
        difference = largest_difference(found[:few], _first_likeliest(again), TEST_FLOOR)
        if not difference <= TEST_TOLERANCE:
            raise EnvironmentFault(
                f"{server.address} answers differently where it reuses a prompt's beginning: its "
                f"log-probabilities {_words(difference, TEST_TOLERANCE)}, so answers would prove "
                "nothing. Update llama-server, or check the file itself: quantkit niah FILE"
            )
        tested = Tested(difference, self._forces(prompt, cost), found[:few])
        self._journal.append(json.dumps({TESTED: asdict(tested)}), cost.line(branch.question.seed))
        if not tested.forces:
            self._progress.note(
                f"{server.address} cannot be made to say given tokens: answers are scored, their "
                "log-probabilities are not known"
            )
        return tested.forces

    def _compare(self, kept: Likeliest, found: Likeliest, prompts: Sequence[Prompts]) -> None:
        """Begin anew where kept answers are of another model than that which is served now."""
        difference = largest_difference(kept, found, -math.inf)
        if not difference <= SAME_TOLERANCE:
            self._progress.note(
                f"{self._server.address} answers otherwise than when the kept answers were given: "
                f"its log-probabilities {_words(difference, SAME_TOLERANCE)}, as those of another "
                "file or other options; all questions are asked anew"
            )
            self._journal.forget()
            self._answered.clear()
            self._start(prompts)
            self._progress.advance(prompts[0].branches[0].leaves_at)

    def _forces(self, prompt: Tokens, cost: _Cost) -> bool:
        middle = len(prompt) // 2  # haystack: tokens that end no answer, which a grammar would mind
        forced = [int(token) for token in prompt[middle : middle + 2]]
        try:
            said = self._server.complete(prompt, len(forced), likeliest=1, forced=forced)
        except Refused:  # its grammars do not know tokens by id
            return False
        cost.add(said, 0)
        return _log_probability(said, forced) is not None

    def _advancing(self, tokens: int) -> Callable[[float], None]:
        """Tells the progress of `tokens` of the work as shares of them are done."""
        told = 0.0

        def on_share(share: float) -> None:
            nonlocal told
            self._progress.advance(max(share - told, 0.0) * tokens)
            told = max(share, told)

        return on_share

    def _reach(self, prompts: Prompts, at: int, stride: int, context_tokens: int) -> None:
        """Have the stream in the slot up to `at`, where the next questions leave it."""
        if at:
            cost = _Cost(context_tokens)
            cost.add(self._server.prefill(prompts.stream[:at], self._advancing(stride)), 0)
            self._journal.append(cost.line(prompts.branches[0].question.seed))

    def _ask(self, prompts: Prompts, branch: Branch, *, forces: bool) -> None:
        question, prompt = branch.question, _prompt(prompts, branch)
        cost, own = _Cost(question.context_tokens), len(branch.tokens) - branch.haystack_tokens
        candidates = [[int(t) for t in c] for c in branch.candidates] if forces else []
        said = self._server.complete(
            prompt,
            question.answer_tokens,
            likeliest=1 if candidates else 0,
            kept=THINKING_TAGS if self._recipe.thinking else (),
        )
        cost.add(said, own)
        found: list[float | None] = []
        rank = None
        for number, tokens in enumerate(candidates):
            telling = said
            if said.tokens[: len(tokens)] != tuple(tokens):
                likeliest = 1 if number else RANKED
                telling = self._server.complete(
                    prompt, len(tokens), likeliest=likeliest, forced=tokens
                )
                cost.add(telling, own)
            found.append(_log_probability(telling, tokens))
            if not number and found[0] is not None:
                rank = _worst_rank(telling, tokens)
        answer = answer_to(branch, self._recipe, said.text, found, rank, truncated=not said.ended)
        self._journal.append(answer_line(answer), cost.line(question.seed))
        self._answered.add(answer.place)
        self._progress.advance(len(branch.tokens))

    def _done(self, branch: Branch) -> bool:
        return branch.question.place in self._answered


def _first_likeliest(said: Completion) -> Likeliest:
    return said.steps[0].likeliest if said.steps else ()


def _prompt(prompts: Prompts, branch: Branch) -> Tokens:
    return np.concatenate([prompts.stream[: branch.leaves_at], branch.tokens]).astype(np.int32)
