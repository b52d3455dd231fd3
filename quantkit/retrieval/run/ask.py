"""Asks what is not answered yet, and writes down each answer: the retrieval check's long part."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict, dataclass

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.journal import Journal
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.llama import Context, Vocabulary
from quantkit.llamacpp.questions import Asked, Questioner, Said, Seats, relative_difference
from quantkit.llamacpp.saved_state import SavedState
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.journaled import answer_line, answer_to, answered_places
from quantkit.retrieval.scoring import THINKING_TAGS

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
            context,
            vocab,
            seats,
            lambda tokens: emit(("advance", tokens)),
            THINKING_TAGS if recipe.thinking else (),
        )
        self._answered = answered_places(journal.lines)
        self._closed: set[tuple[int, int]] = set()
        for line in journal.lines:
            entry = json.loads(line)
            if "rung" in entry:
                self._closed.add((entry["rung"]["context_tokens"], entry["seed"]))

    def begin(self, prompts: dict[int, Prompts], saved: dict[int, SavedState]) -> None:
        """Tell how much there is to do, and how much an earlier run did.

        Args:
            saved: by seed; empty where each question gets a prefill of its own.
        """
        total = done = 0
        for seed, one in prompts.items():
            answered = [b for b in one.branches if self._is_answered(b)]
            if not saved:
                total += one.classic_tokens
                done += sum(b.prompt_tokens for b in answered)
                continue
            total += one.prefill_tokens + one.question_tokens
            done += sum(len(b.tokens) for b in answered)
            stream = len(one.stream)
            done += saved[seed].position(stream) if self._open(seed, one) else stream
        self._emit(("start", (done, total)))

    def one_pass(self, seed: int, prompts: Prompts, saved: SavedState) -> None:
        """Decode the stream once, and ask at each place where branches leave it."""
        left = self._open(seed, prompts)
        if not left:
            return
        context = self._context
        context.clear()
        position, facts = saved.load(context, prompts.stream)
        if position > left[0].leaves_at:  # saved beyond what is still to be asked
            context.clear()
            position, facts = 0, {}
        if position:
            self._emit(("note", f"goes on behind {position:,} tokens that an earlier run saved"))
        paid = max((b.leaves_at for b in prompts.branches if _rung(b) < _rung(left[0])), default=0)
        self._advance(prompts, position, paid, saved, [], _Cost())  # the journal has its cost
        position = max(position, paid)
        for rung, group in itertools.groupby(left, key=_rung):
            cost = _Cost(**facts["cost"]) if facts.get("rung") == list(rung) else _Cost()
            self._advance(prompts, position, rung[0], saved, list(rung), cost)
            position = rung[0]
            last = _rung(prompts.branches[-1]) == rung
            if self._recipe.mode == "classic":
                for branch in group:
                    self._ask_one(seed, branch, cost)
                    cost = _Cost()
            else:
                self._ask_all(seed, list(group), cost, last=last)

    def _advance(
        self,
        prompts: Prompts,
        start: int,
        stop: int,
        saved: SavedState,
        rung: list[int],
        cost: _Cost,
    ) -> None:
        """Decode the stream from `start` to `stop`, and save it now and then."""
        size = self._context.settings.batch_tokens
        for at in range(start, stop, size):
            piece = prompts.stream[at : min(at + size, stop)]
            began = time.perf_counter()
            self._context.prefill(piece, at)
            self._context.wait()
            cost.prefill_seconds += time.perf_counter() - began
            cost.prefill_tokens += len(piece)
            behind = prompts.stream[: at + len(piece)]
            saved.save(self._context, behind, {"rung": rung, "cost": asdict(cost)})
            self._emit(("advance", len(piece)))

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
            cost.prefill_tokens = branch.leaves_at + branch.haystack_tokens
            cost.question_tokens = len(branch.tokens) - branch.haystack_tokens
            self._emit(("advance", branch.leaves_at))
            said = self._questioner.ask_on_base(branch.leaves_at, _asked(branch))
            self._write(branch, said, cost)

    def _ask_one(self, seed: int, branch: Branch, cost: _Cost) -> None:
        """Ask a question whose own part is long: haystack, which counts as such."""
        if self._is_answered(branch):
            return
        said: list[Said] = []
        began = time.perf_counter()
        self._questioner.ask(
            branch.leaves_at, [_asked(branch)], lambda _place, one: said.append(one)
        )
        cost.prefill_seconds += time.perf_counter() - began
        cost.prefill_tokens += branch.haystack_tokens
        cost.question_tokens = len(branch.tokens) - branch.haystack_tokens
        self._write(branch, said[0], cost)

    def _ask_all(self, seed: int, group: list[Branch], cost: _Cost, *, last: bool) -> None:
        """Ask all that leave the stream here, and see that the stream stayed as it was.

        One question is decoded before all others and after them: a fork that changed the prefix
        would show. Behind the last ones the prefix is not needed any more, and the question is
        decoded on it, without a fork.
        """
        at, first = group[0].leaves_at, group[0]
        before = self._questioner.probe(at, first.tokens)
        for _, some in itertools.groupby(group, key=lambda b: b.question.task):
            self._ask_task(at, list(some))
        # of all, those too that a run asked which was killed before it closed this length
        cost.question_tokens = sum(len(b.tokens) for b in group)
        cost.decode_tokens, cost.decode_seconds = self._questioner.rate(at, int(first.tokens[0]))
        after = [self._questioner.probe(at, first.tokens)]
        if last:
            after.append(self._context.decode(first.tokens, at))
        cost.fork_difference = max(relative_difference(found, before) for found in after)
        if not cost.fork_difference <= FORK_LIMIT:
            raise EnvironmentFault(
                f"at {first.question.context_tokens:,} tokens a question asked again after all "
                f"others differs by {cost.fork_difference:.1e} of its largest logit (limit "
                f"{FORK_LIMIT:g}): forks change the prefix here and the answers prove nothing; "
                "run it again in another folder with --fresh, or update llama-cpp-python"
            )
        self._journal.append(_rung_line(seed, first.question.context_tokens, cost))

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
        return branch.question.place in self._answered

    def _write(self, branch: Branch, said: Said, cost: _Cost | None = None) -> None:
        """Write an answer down, with its cost where that is its own."""
        answer = answer_to(
            branch,
            self._recipe,
            said.text,
            said.log_probabilities,
            said.rank,
            truncated=said.truncated,
        )
        lines = [answer_line(answer)]
        if cost is not None:
            lines.append(_rung_line(answer.seed, answer.context_tokens, cost))
        self._journal.append(*lines)
        self._answered.add(answer.place)


def _rung_line(seed: int, context_tokens: int, cost: _Cost) -> str:
    """A journal's line of what a length took, or a part of it."""
    return json.dumps({"rung": {"context_tokens": context_tokens, **asdict(cost)}, "seed": seed})


def _rung(branch: Branch) -> tuple[int, int]:
    """Where a branch leaves the stream, and of which length it is."""
    return branch.leaves_at, branch.question.context_tokens


def _asked(branch: Branch) -> Asked:
    return Asked(branch.tokens, branch.candidates, branch.question.answer_tokens)
