"""Questions to a model in this process: on forks of one prefill, or each after its own prefill."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from quantkit.core.errors import EnvironmentFault
from quantkit.core.progress import Progress
from quantkit.llamacpp.llama import Context, Vocabulary
from quantkit.llamacpp.prompts import Prompt, PromptRunner, Slots, relative_difference
from quantkit.llamacpp.saved_state import SavedState
from quantkit.llamacpp.settings import Reply
from quantkit.retrieval.answers import Answers, Cost, Respondent
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.scoring import THINKING_TAGS

FORK_LIMIT = 1e-2
"""Largest difference of a question asked again after all others, relative to its largest logit. On
a CPU the logits are equal to the bit; a device may add up in another order. Another prefix differs
by about 1."""


@dataclass
class FreshPrefills(Respondent):
    """Each question after a prefill of its own."""

    context: Context
    vocab: Vocabulary
    slots: Slots
    answers: Answers
    progress: Progress

    def __post_init__(self) -> None:
        kept = THINKING_TAGS if self.answers.recipe.thinking else ()
        advance = self.progress.advance
        self._runner = PromptRunner(self.context, self.vocab, self.slots, advance, kept)

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        answered = filter(self.answers.has, prompts.branches)
        return sum(b.prompt_tokens for b in answered), prompts.classic_tokens

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        for branch in group:
            self.context.clear()
            seconds = self._prefill(prompts, 0, branch.leaves_at)
            self.progress.advance(branch.leaves_at)
            haystack = branch.leaves_at + branch.haystack_tokens
            cost = Cost(haystack, seconds, branch.own_tokens)
            said = self._runner.ask_without_fork(branch.leaves_at, _asked(branch))
            self.answers.add(branch, said, cost)

    def _prefill(self, prompts: Prompts, start: int, stop: int) -> float:
        """Decode the stream from `start` to `stop`; the seconds that it took."""
        began = time.perf_counter()
        self.context.prefill(prompts.stream[start:stop], start)
        self.context.wait()
        return time.perf_counter() - began


@dataclass
class Forks(FreshPrefills):
    """The stream is decoded once; questions are asked on forks where they leave it.

    Attributes:
        saved: by seed, where the stream is saved now and then.
    """

    saved: Mapping[int, SavedState]
    _position: int = 0
    _facts: dict[str, Any] = field(default_factory=dict)

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        stream = len(prompts.stream)
        done = self.saved[prompts.seed].position(stream) if left else stream
        done += sum(len(b.tokens) for b in prompts.branches if self.answers.has(b))
        return done, prompts.prefill_tokens + prompts.question_tokens

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        """Load the saved prefix, and decode what earlier runs have journaled the cost of."""
        self.context.clear()
        saved = self.saved[prompts.seed].load(self.context, prompts.stream)
        self._position, self._facts = saved
        if self._position > left[0].leaves_at:  # saved beyond an open question
            self.context.clear()
            self._position, self._facts = 0, {}
        if self._position:
            self.progress.note(
                f"goes on behind {self._position:,} tokens that an earlier run saved"
            )
        paid = max((b.leaves_at for b in prompts.branches if b.rung < left[0].rung), default=0)
        self._advance(prompts, paid, (), Cost())

    def _advance(self, prompts: Prompts, stop: int, rung: tuple[int, ...], cost: Cost) -> Cost:
        """Decode the stream up to `stop`, and save it now and then; `cost` plus that of this."""
        size = self.context.settings.batch_tokens
        for at in range(self._position, stop, size):
            end = min(at + size, stop)
            seconds = self._prefill(prompts, at, end)
            cost += Cost(end - at, seconds)
            facts = {"rung": list(rung), "cost": asdict(cost)}
            self.saved[prompts.seed].save(self.context, prompts.stream[:end], facts)
            self.progress.advance(end - at)
        self._position = max(self._position, stop)
        return cost

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        rung, saved = group[0].rung, self._facts
        cost = Cost(**saved["cost"]) if saved.get("rung") == list(rung) else Cost()
        cost = self._advance(prompts, rung[0], rung, cost)
        if self.answers.recipe.mode == "classic":
            for branch in group:
                self._ask_one(branch, cost)
                cost = Cost()
        else:
            self._ask_together(group, cost, last=prompts.branches[-1].rung == rung)

    def _ask_one(self, branch: Branch, cost: Cost) -> None:
        """Ask a question whose own part is mostly haystack, which counts as prefill."""
        said: list[Reply] = []
        began = time.perf_counter()
        self._runner.ask(branch.leaves_at, [_asked(branch)], lambda _place, one: said.append(one))
        seconds = time.perf_counter() - began
        cost += Cost(branch.haystack_tokens, seconds, branch.own_tokens)
        self.answers.add(branch, said[0], cost)

    def _ask_together(self, group: Sequence[Branch], cost: Cost, *, last: bool) -> None:
        """Ask all questions that leave the stream here, and check that it stayed unchanged.

        One question is decoded before all others and after them: a fork that changed the prefix
        would show. After the last ones the prefix is not needed any more, and the question is
        also decoded on it, without a fork.
        """
        at, first = group[0].leaves_at, group[0]
        before = self._runner.probe(at, first.tokens)
        for _, some in itertools.groupby(group, key=lambda b: b.question.task):
            self._ask_task(at, list(some))
        decoded, seconds = self._runner.rate(at, int(first.tokens[0]))
        after = [self._runner.probe(at, first.tokens)]
        if last:
            after.append(self.context.decode(first.tokens, at))
        difference = max(relative_difference(found, before) for found in after)
        if not difference <= FORK_LIMIT:
            raise EnvironmentFault(
                f"at {first.question.context_tokens:,} tokens a question asked again after all "
                f"others differs by {difference:.1e} of its largest logit (limit {FORK_LIMIT:g}): "
                "forks change the prefix here and the answers prove nothing; run it again in "
                "another folder with --fresh, or update llama-cpp-python"
            )
        # of all questions, also of those that an interrupted run asked before this line
        tokens = sum(len(b.tokens) for b in group)
        cost = replace(
            cost,
            question_tokens=tokens,
            decode_tokens=decoded,
            decode_seconds=seconds,
            fork_difference=difference,
        )
        self.answers.add_cost(first, cost)

    def _ask_task(self, at: int, branches: Sequence[Branch]) -> None:
        """Ask the questions of one task that have no answer yet."""
        self._runner.ask(
            at,
            [_asked(b) for b in branches],
            lambda place, said: self.answers.add(branches[place], said),
            lambda place: not self.answers.has(branches[place]),
        )


def _asked(branch: Branch) -> Prompt:
    return Prompt(branch.tokens, branch.candidates, branch.question.answer_tokens)
