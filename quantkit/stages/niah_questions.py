"""Asks what is not answered yet, and writes down each answer: the retrieval check's long part."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, dataclass

from quantkit.errors import EnvironmentFault
from quantkit.journal import Journal
from quantkit.native.child import Emit
from quantkit.native.llama import Context, Vocabulary
from quantkit.native.questions import Asked, Questioner, Said, Seats, relative_difference
from quantkit.native.saved_state import SavedState
from quantkit.recipe import RetrievalRecipe
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.journaled import answer_line, answer_to

FORK_LIMIT = 1e-2
"""Of a question asked again after all others, relative to its largest logit. On a CPU the logits
are equal to the bit; a device may add up in another order. Another prefix differs by about 1."""


@dataclass
class _Cost:
    """What the tokens since the last question took, this run's and those that it resumed."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    question_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    fork_difference: float | None = None


class QuestionRun:
    """Asks what is not answered yet, and writes down what is."""

    def __init__(
        self,
        context: Context,
        vocab: Vocabulary,
        seats: Seats,
        recipe: RetrievalRecipe,
        journal: Journal,
        emit: Emit,
    ) -> None:
        self._context, self._vocab, self._recipe = context, vocab, recipe
        self._journal, self._emit = journal, emit
        self._questioner = Questioner(
            context, vocab, seats, lambda tokens: emit(("advance", tokens))
        )
        self._answered: set[tuple[int, int, str, int]] = set()
        self._closed: set[tuple[int, int]] = set()
        for line in journal.lines:
            entry = json.loads(line)
            if "answer" in entry:
                a = entry["answer"]
                self._answered.add((a["context_tokens"], a["seed"], a["task"], a["index"]))
            else:
                self._closed.add((entry["rung"]["context_tokens"], entry["seed"]))

    def begin(self, prompts: dict[int, Prompts], *, forked: bool) -> None:
        """Tell how much there is to do, and how much an earlier run did."""
        total = done = 0
        for seed, one in prompts.items():
            if forked:
                total += one.prefill_tokens + one.question_tokens
                if not self._open(seed, one):
                    done += one.prefill_tokens + one.question_tokens
            else:
                total += one.classic_tokens
                answered = [b for b in one.branches if self._is_answered(b)]
                done += sum(b.prompt_tokens for b in answered)
        self._emit(("start", (done, total)))

    def one_pass(self, seed: int, prompts: Prompts, saved: SavedState) -> None:
        """Decode the stream once, and ask at each place where branches leave it."""
        left = self._open(seed, prompts)
        if not left:
            return
        context, stream = self._context, prompts.stream
        context.clear()
        position, spent = saved.load(context, stream)
        if position > left[0].leaves_at:  # saved beyond what is still to be asked
            context.clear()
            position, spent = 0, {}
        if position:
            self._emit(("note", f"goes on behind {position:,} tokens that an earlier run saved"))
        asked = [b for b in prompts.branches if self._is_answered(b)]
        self._emit(("advance", position + sum(len(b.tokens) - b.haystack_tokens for b in asked)))
        for (at, length), group in itertools.groupby(left, key=_rung):
            cost = _Cost(**spent)
            while position < at:
                step = min(context.settings.batch_tokens, at - position)
                began = time.perf_counter()
                context.prefill(stream[position : position + step], position)
                context.wait()
                cost.prefill_seconds += time.perf_counter() - began
                cost.prefill_tokens += step
                position += step
                saved.save(context, stream[:position], asdict(cost))
                self._emit(("advance", step))
            last = _rung(prompts.branches[-1]) == (at, length)
            self._ask_all(seed, list(group), cost, last=last)
            spent = {}

    def fresh(self, seed: int, prompts: Prompts) -> None:
        """Each question after a prefill of its own."""
        for branch in prompts.branches:
            if self._is_answered(branch):
                continue
            cost = _Cost()
            self._context.clear()
            began = time.perf_counter()
            self._context.prefill(prompts.stream[: branch.leaves_at], 0)
            self._context.wait()
            cost.prefill_seconds = time.perf_counter() - began
            cost.prefill_tokens = branch.leaves_at
            self._emit(("advance", branch.leaves_at))
            said = self._questioner.ask_on_base(branch.leaves_at, _asked(branch))
            self._write(branch, said)
            cost.question_tokens = len(branch.tokens)
            self._close(seed, branch.question.context_tokens, cost)

    def _ask_all(self, seed: int, group: list[Branch], cost: _Cost, *, last: bool) -> None:
        """Ask all that leave the stream here, and see that the stream stayed as it was.

        One question is decoded before all others and after them: a fork that changed the prefix
        would show. Behind the last ones the prefix is not needed any more, and the question is
        decoded on it: a fresh decode at full length.
        """
        at, first = group[0].leaves_at, group[0]
        classic = self._recipe.mode == "classic"  # what follows is long, and of one question
        before = None if classic else self._questioner.probe(at, first.tokens)
        began = time.perf_counter()
        for _, some in itertools.groupby(group, key=lambda b: b.question.task):
            self._ask_task(at, list(some))
        # of all, those too that a run asked which was killed before it closed this length
        cost.question_tokens = sum(len(b.tokens) - b.haystack_tokens for b in group)
        cost.prefill_tokens += sum(b.haystack_tokens for b in group)
        if before is None:
            cost.prefill_seconds += time.perf_counter() - began
        else:
            cost.decode_tokens, cost.decode_seconds = self._questioner.rate(
                at, int(first.tokens[0])
            )
            cost.fork_difference = relative_difference(
                self._questioner.probe(at, first.tokens), before
            )
            if last:
                fresh = self._context.decode(first.tokens, at)
                cost.fork_difference = max(cost.fork_difference, relative_difference(before, fresh))
            if not cost.fork_difference <= FORK_LIMIT:
                raise EnvironmentFault(
                    f"at {first.question.context_tokens:,} tokens a question asked again after all "
                    f"others differs by {cost.fork_difference:.1e} of its largest logit (limit "
                    f"{FORK_LIMIT:g}): forks change the prefix here and the answers prove nothing; "
                    "run it again in another folder with --fresh, or update llama-cpp-python"
                )
        self._close(seed, first.question.context_tokens, cost)

    def _ask_task(self, at: int, branches: list[Branch]) -> None:
        """Ask the questions of one task that have no answer yet."""

        def on_answer(place: int, said: Said) -> None:
            self._write(branches[place], said)

        def wanted(place: int) -> bool:
            return not self._is_answered(branches[place])

        self._questioner.ask(at, [_asked(b) for b in branches], on_answer, wanted)

    def _open(self, seed: int, prompts: Prompts) -> list[Branch]:
        """What is left: questions without an answer, and those of a length that was not closed."""
        return [
            b
            for b in prompts.branches
            if not self._is_answered(b) or (b.question.context_tokens, seed) not in self._closed
        ]

    def _is_answered(self, branch: Branch) -> bool:
        q = branch.question
        return (q.context_tokens, q.seed, q.task, q.index) in self._answered

    def _write(self, branch: Branch, said: Said) -> None:
        answer = answer_to(
            branch,
            self._recipe,
            said.text,
            said.log_probabilities,
            said.rank,
            truncated=said.truncated,
        )
        self._journal.append(answer_line(answer))
        self._answered.add(answer.place)

    def _close(self, seed: int, context_tokens: int, cost: _Cost) -> None:
        rung = {"context_tokens": context_tokens, **asdict(cost)}
        self._journal.append(json.dumps({"rung": rung, "seed": seed}))


def _rung(branch: Branch) -> tuple[int, int]:
    """Where a branch leaves the stream, and of which length it is."""
    return branch.leaves_at, branch.question.context_tokens


def _asked(branch: Branch) -> Asked:
    return Asked(branch.tokens, branch.candidates, branch.question.answer_tokens)
