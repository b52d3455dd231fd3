"""A running llama-server → niah.jsonl: the retrieval check through its own address.

Prompts are token ids, made with the server's tokenizer and chat template; docs/retrieval.md
(Against a llama-server) says how a server without forks decodes them.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.files import write_text
from quantkit.core.progress import SILENT, Progress
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.endpoint import Refused
from quantkit.llamacpp.server import Completion, LlamaServer, Tokens, file_name
from quantkit.llamacpp.settings import Reply
from quantkit.retrieval.answers import Answers, Cost, Likeliest, Respondent, Tested, ask_all
from quantkit.retrieval.branches import Branch, Prompts, Tokenize
from quantkit.retrieval.prompts import all_prompts
from quantkit.retrieval.results import Retrieval, ServerFacts, answer_lines
from quantkit.retrieval.scoring import THINKING_TAGS

NOTED_RATIO = 2
"""A note is given if the server prefills more than this many times the tokens that it needs to."""
CACHED_CHARACTERS = 5000
"""Longest text whose tokens are kept: sentences and endings recur, whole prompts do not."""
AS_SERVED = "as served"
TEST_TAIL = 64
"""Most tokens of the test's question that are its own."""
TEST_LIKELIEST = (32, 256)
"""Candidates of the fresh answer that are compared, and those of the other to find them in."""
TEST_FLOOR = -10.0
"""Nats: the self-test compares likelier candidates only. Others hardly affect an answer, and their
logits may be rounded more coarsely."""
TEST_TOLERANCE = 0.25
"""Nats: batches of other sizes round otherwise, by up to 0.028 in llama-server on a CPU (of
candidates down to -15 nats; BF16, Q8_0, Q5_0, Q4_0); a state that is not that of the prefix differs
by 3.5."""
SAME_TOLERANCE = 0.02
"""Nats, of all known candidates: where one token is nearly certain, only the others tell files
apart. On a CPU the same file with the same options gave the same bits; Q8_0 differed from BF16 by
0.026 and more, Q4_0 from Q5_0 by 0.4, and a file with other options (KV type, batch size) from
itself by up to 0.066."""
RANKED = 1000
"""Candidates among which a rank is counted."""


def check_served(
    endpoint: str,
    recipe: RetrievalRecipe,
    out: Path,
    work: Path,
    haystack: Path | None = None,
    progress: Progress = SILENT,
) -> tuple[Retrieval, ServerFacts]:
    """Ask the model at `endpoint` all questions at every context length; answers go to `out`.

    `work` keeps answers: an interrupted run resumes there. `Retrieval.prefill_tokens` and
    `question_tokens` are what the server prefilled, in this run and in those that it continues.

    Raises:
        InputError: no llama-server, a context that is too short, or a haystack that is.
        EnvironmentFault: it cannot be reached, stopped, or its reused prefixes are not exact.
    """
    with LlamaServer(endpoint, progress) as server:
        props = server.props()
        longest = max(recipe.context_tokens)
        if longest > props.context_tokens:
            raise InputError(
                f"a slot of {server.address} holds {props.context_tokens} tokens, the check asks "
                f"at {longest}; start llama-server with -np 1 -c {longest}, or check a shorter "
                "context"
            )
        special, begin = (props.bos, props.eos), server.first_token()
        tokenize, template = _cached(server), props.chat_template
        prompts = all_prompts(tokenize, template, special, recipe, haystack, begin)
        purpose = json.dumps(
            {
                "recipe": recipe.model_dump(mode="json"),
                "model": [props.model, props.model_path, props.size_bytes, props.build],
                "prompts": [one.digest for one in prompts],
                "likeliest": TEST_LIKELIEST[0],
            }
        )
        answers = Answers(Journal(work / "answers.jsonl", purpose), recipe, prompts)
        ask_all(Served(server, answers, progress), prompts, answers, progress)
    planned = answers.result(prompts, AS_SERVED, max(one.difference for one in answers.tests))
    one_pass = planned.prefill_tokens + planned.question_tokens
    names = ("prefill_tokens", "question_tokens")
    paid = {name: sum(getattr(rung, name) for rung in planned.rungs) for name in names}
    retrieval = planned.model_copy(update=paid)
    write_text(out, answer_lines(retrieval.answers))
    taken = retrieval.prefill_tokens + retrieval.question_tokens
    if taken > NOTED_RATIO * one_pass:
        progress.note(
            f"the server prefilled {taken:,} tokens, where {one_pass:,} would have done: others "
            "ask it meanwhile, or it keeps no checkpoints (--ctx-checkpoints)"
        )
    facts = ServerFacts(
        loopback=server.loopback,
        model=props.model,
        file=file_name(props.model_path),
        size_bytes=props.size_bytes,
        context_tokens=props.context_tokens,
        slots=props.slots,
        build=props.build,
        chat_template=props.chat_template is not None,
        log_probabilities=all(one.forces for one in answers.tests),
        one_pass_tokens=one_pass,
    )
    return retrieval, facts


def _cached(server: LlamaServer) -> Tokenize:
    """The server's tokenizer, as a function of one text."""

    def tokenize(text: str) -> Tokens:
        (tokens,) = server.tokenize(text)
        return tokens

    known = functools.cache(tokenize)
    return lambda text: (known if len(text) <= CACHED_CHARACTERS else tokenize)(text)


def largest_difference(expected: Likeliest, found: Likeliest, floor: float) -> float:
    """Largest difference, in nats, of the log-probabilities in `expected` that exceed `floor`.

    Infinite if it is not known: a candidate was not found, none is left, or these are no
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


def _probability(said: Completion, tokens: Sequence[int]) -> tuple[float | None, int | None]:
    """Log-probability and worst rank of `tokens`, which begin the answer; None: not known."""
    steps = said.steps[: len(tokens)]
    if [step.token for step in steps] != list(tokens):
        return None, None
    nats = [step.log_probability for step in steps if step.log_probability is not None]
    ranks = [step.rank for step in steps if step.rank is not None]
    if len(nats) < len(steps):
        return None, None
    return sum(nats), max(ranks) if len(ranks) == len(steps) else None


def _cost(said: Completion, own_tokens: int = 0) -> Cost:
    """The cost of an answer; tokens prefilled beyond `own_tokens`, its question's, are haystack."""
    own = min(own_tokens, said.prefilled_tokens)
    more = said.prefilled_tokens - own
    prefill_seconds = said.prefill_seconds * more / max(said.prefilled_tokens, 1)
    decode_seconds = said.decode_seconds if said.decoded_tokens else 0.0
    return Cost(more, prefill_seconds, own, said.decoded_tokens, decode_seconds)


class Served(Respondent):
    """A llama-server; answers of another model are discarded.

    The haystack of a length is sent alone first, so the server keeps it for the questions.
    """

    def __init__(self, server: LlamaServer, answers: Answers, progress: Progress) -> None:
        self._server, self._answers, self._progress = server, answers, progress
        self._first_seed = answers.recipe.seeds[0]
        self._tested = self._forces = False
        self._position = self._at = 0

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        done = self._reached(prompts, left)
        if prompts.seed == self._first_seed and not self._tested:
            done = max(done - prompts.branches[0].leaves_at, 0)  # the test prefills it once more
        done += sum(len(b.tokens) for b in prompts.branches if self._answers.has(b))
        return done, prompts.prefill_tokens + prompts.question_tokens

    def _reached(self, prompts: Prompts, left: Sequence[Branch]) -> int:
        """How far the stream counts as done before the first of `left`."""
        before = (b for b in prompts.branches if not left or b.rung < left[0].rung)
        reached = max((branch.leaves_at for branch in before), default=0)
        if prompts.seed == self._first_seed and self._tested:
            return max(reached, prompts.branches[0].leaves_at)
        return reached

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        self._position, self._at = self._reached(prompts, left), 0

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        at = group[0].leaves_at
        if at != self._at:  # have the stream in the slot up to here
            said = self._server.prefill(prompts.stream[:at], self._advancing(at - self._position))
            self._answers.add_cost(group[0], _cost(said))
            self._position = self._at = at
        for branch in group:
            self._ask(prompts, branch)

    def prepare(self, prompts: Sequence[Prompts]) -> bool:
        """Ask a question afresh, and again after a prefix that another question followed.

        Every run asks the same question, so the fresh answer also shows whether kept answers are
        of the file that is served now.

        Raises:
            EnvironmentFault: the answers differ by more than rounding does.
        """
        haystack = sum(one.prefill_tokens for one in prompts)
        questions = sum(one.question_tokens for one in prompts)
        self._progress.note(
            f"{haystack:,} tokens of haystack and {questions:,} of questions, as far as the server "
            f"keeps a prefix; one prefill a question would take "
            f"{sum(one.classic_tokens for one in prompts):,}"
        )
        branch, kept = prompts[0].branches[0], self._answers.tests
        server, prompt = self._server, _prompt(prompts[0], branch)
        head, tail = np.split(prompt, [max(branch.leaves_at, len(prompt) - TEST_TAIL)])
        few, many = TEST_LIKELIEST
        fresh = server.prefill(
            prompt, self._advancing(branch.leaves_at), likeliest=many, reuse=False
        )
        found = _first_likeliest(fresh)
        self._tested = True
        forgot = bool(kept) and self._is_other(kept[0].likeliest, found)
        cost = _cost(fresh) + _cost(server.prefill(head, lambda share: None))
        cost += _cost(server.complete(np.concatenate([head, tail[::-1]]), 1))
        again = server.complete(prompt, 1, likeliest=many)
        cost += _cost(again)
        difference = largest_difference(found[:few], _first_likeliest(again), TEST_FLOOR)
        if not difference <= TEST_TOLERANCE:
            raise EnvironmentFault(
                f"{server.address} answers differently where it reuses a prompt's beginning: its "
                f"log-probabilities {_words(difference, TEST_TOLERANCE)}, so answers would prove "
                "nothing. Update llama-server, or check the file itself: quantkit niah FILE"
            )
        self._forces, more = self._try_forcing(prompt)
        self._answers.add_test(Tested(difference, self._forces, found[:few]))
        self._answers.add_cost(branch, cost + more)
        if not self._forces:
            self._progress.note(
                f"{server.address} cannot be made to say given tokens: answers are scored, their "
                "log-probabilities are not known"
            )
        return forgot

    def _is_other(self, kept: Likeliest, found: Likeliest) -> bool:
        """Discard kept answers if they are of another model than the one that is served now."""
        difference = largest_difference(kept, found, -math.inf)
        if difference <= SAME_TOLERANCE:
            return False
        self._progress.note(
            f"{self._server.address} answers otherwise than when the kept answers were given: "
            f"its log-probabilities {_words(difference, SAME_TOLERANCE)}, as those of another "
            "file or other options; all questions are asked anew"
        )
        self._answers.forget()
        return True

    def _try_forcing(self, prompt: Tokens) -> tuple[bool, Cost]:
        """Whether the server can be made to say given tokens, and the cost of the attempt."""
        middle = len(prompt) // 2  # haystack: tokens that end no answer, which a grammar would mind
        forced = [int(token) for token in prompt[middle : middle + 2]]
        try:
            said = self._server.complete(prompt, len(forced), likeliest=1, forced=forced)
        except Refused:  # its grammars do not know tokens by id
            return False, Cost()
        return _probability(said, forced)[0] is not None, _cost(said)

    def _advancing(self, tokens: int) -> Callable[[float], None]:
        """Reports progress on `tokens` of the work, of which shares are done."""
        told = 0.0

        def on_share(share: float) -> None:
            nonlocal told
            self._progress.advance(max(share - told, 0.0) * tokens)
            told = max(share, told)

        return on_share

    def _ask(self, prompts: Prompts, branch: Branch) -> None:
        """Ask one question, and for the log-probability of each candidate that was not said."""
        question, prompt, own = branch.question, _prompt(prompts, branch), branch.own_tokens
        candidates = [[int(t) for t in c] for c in branch.candidates] if self._forces else []
        said = self._server.complete(
            prompt,
            question.answer_tokens,
            likeliest=1 if candidates else 0,
            kept=THINKING_TAGS if self._answers.recipe.thinking else (),
        )
        cost, found = _cost(said, own), list[tuple[float | None, int | None]]()
        for number, tokens in enumerate(candidates):
            telling = said
            if said.tokens[: len(tokens)] != tuple(tokens):
                likeliest = 1 if number else RANKED
                telling = self._server.complete(
                    prompt, len(tokens), likeliest=likeliest, forced=tokens
                )
                cost += _cost(telling, own)
            found.append(_probability(telling, tokens))
        rank = found[0][1] if found else None
        answer = Reply(said.text, not said.ended, tuple(nats for nats, _ in found), rank)
        self._answers.add(branch, answer, cost)
        self._progress.advance(len(branch.tokens))


def _first_likeliest(said: Completion) -> Likeliest:
    return said.steps[0].likeliest if said.steps else ()


def _prompt(prompts: Prompts, branch: Branch) -> Tokens:
    return np.concatenate([prompts.stream[: branch.leaves_at], branch.tokens]).astype(np.int32)
