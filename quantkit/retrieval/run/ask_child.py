"""Questions to a model in this process: on forks of one prefill, or each after its own prefill."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault
from quantkit.core.progress import Progress
from quantkit.llamacpp.llama import Context, Vocabulary
from quantkit.llamacpp.prompts import Prompt, PromptRunner, Slots, relative_difference
from quantkit.llamacpp.reply import Reply
from quantkit.llamacpp.saved_state import SavedState
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.journaled import Answers, Cost
from quantkit.retrieval.scoring import THINKING_TAGS

FORK_LIMIT = 1e-2
"""Of a question asked again after all others, relative to its largest logit. On a CPU the logits
are equal to the bit; a device may add up in another order. Another prefix differs by about 1."""


@dataclass(frozen=True)
class Asking:
    """What questions in this process need."""

    context: Context
    vocab: Vocabulary
    slots: Slots
    recipe: RetrievalRecipe
    answers: Answers
    progress: Progress

    def runner(self) -> PromptRunner:
        kept = THINKING_TAGS if self.recipe.thinking else ()
        return PromptRunner(self.context, self.vocab, self.slots, self.progress.advance, kept)

    def prefill(self, prompts: Prompts, start: int, stop: int) -> float:
        """Decode the stream from `start` to `stop`: the seconds that it took."""
        began = time.perf_counter()
        self.context.prefill(prompts.stream[start:stop], start)
        self.context.wait()
        return time.perf_counter() - began


class FreshPrefills:
    """Each question after a prefill of its own."""

    def __init__(self, asking: Asking) -> None:
        self._with, self._runner = asking, asking.runner()

    def prepare(self, prompts: Sequence[Prompts]) -> bool:
        return False

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        answered = filter(self._with.answers.has, prompts.branches)
        return sum(b.prompt_tokens for b in answered), prompts.classic_tokens

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        pass

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        for branch in group:
            self._with.context.clear()
            seconds = self._with.prefill(prompts, 0, branch.leaves_at)
            self._with.progress.advance(branch.leaves_at)
            cost = Cost(
                prefill_tokens=branch.leaves_at + branch.haystack_tokens,
                prefill_seconds=seconds,
                question_tokens=branch.own_tokens,
            )
            said = self._runner.ask_without_fork(branch.leaves_at, _asked(branch))
            self._with.answers.add(branch, said, cost)


class Forks:
    """The stream is decoded once; questions are asked on forks where they leave it.

    Args:
        saved: by seed, where the stream is saved now and then.
    """

    def __init__(self, asking: Asking, saved: Mapping[int, SavedState]) -> None:
        self._with, self._saved, self._runner = asking, saved, asking.runner()
        self._position, self._facts = 0, dict[str, Any]()

    def prepare(self, prompts: Sequence[Prompts]) -> bool:
        return False  # `try_forks` came first

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        stream = len(prompts.stream)
        done = self._saved[prompts.seed].position(stream) if left else stream
        done += sum(len(b.tokens) for b in prompts.branches if self._with.answers.has(b))
        return done, prompts.prefill_tokens + prompts.question_tokens

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        """Load the saved prefix, and decode what earlier runs have paid for."""
        context = self._with.context
        context.clear()
        self._position, self._facts = self._saved[prompts.seed].load(context, prompts.stream)
        if self._position > left[0].leaves_at:  # saved beyond what is still to be asked
            context.clear()
            self._position, self._facts = 0, {}
        if self._position:
            self._with.progress.note(
                f"goes on behind {self._position:,} tokens that an earlier run saved"
            )
        paid = max((b.leaves_at for b in prompts.branches if b.rung < left[0].rung), default=0)
        self._advance(prompts, paid, (), Cost())  # the journal has its cost

    def _advance(self, prompts: Prompts, stop: int, rung: tuple[int, ...], cost: Cost) -> Cost:
        """Decode the stream up to `stop`, and save it now and then: `cost` with what that took."""
        size = self._with.context.settings.batch_tokens
        for at in range(self._position, stop, size):
            end = min(at + size, stop)
            seconds = self._with.prefill(prompts, at, end)
            cost += Cost(prefill_tokens=end - at, prefill_seconds=seconds)
            facts = {"rung": list(rung), "cost": asdict(cost)}
            self._saved[prompts.seed].save(self._with.context, prompts.stream[:end], facts)
            self._with.progress.advance(end - at)
        self._position = max(self._position, stop)
        return cost

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        rung, saved = group[0].rung, self._facts
        cost = Cost(**saved["cost"]) if saved.get("rung") == list(rung) else Cost()
        cost = self._advance(prompts, rung[0], rung, cost)
        if self._with.recipe.mode == "classic":
            for branch in group:
                self._ask_one(branch, cost)
                cost = Cost()
        else:
            self._ask_together(group, cost, last=prompts.branches[-1].rung == rung)

    def _ask_one(self, branch: Branch, cost: Cost) -> None:
        """Ask a question whose own part is long: haystack, which counts as such."""
        said: list[Reply] = []
        began = time.perf_counter()
        self._runner.ask(branch.leaves_at, [_asked(branch)], lambda _place, one: said.append(one))
        cost += Cost(
            prefill_tokens=branch.haystack_tokens,
            prefill_seconds=time.perf_counter() - began,
            question_tokens=branch.own_tokens,
        )
        self._with.answers.add(branch, said[0], cost)

    def _ask_together(self, group: Sequence[Branch], cost: Cost, *, last: bool) -> None:
        """Ask all that leave the stream here, and see that the stream stayed as it was.

        One question is decoded before all others and after them: a fork that changed the prefix
        would show. Behind the last ones the prefix is not needed any more, and the question is
        decoded on it, without a fork.
        """
        at, first = group[0].leaves_at, group[0]
        before = self._runner.probe(at, first.tokens)
        for _, some in itertools.groupby(group, key=lambda b: b.question.task):
            self._ask_task(at, list(some))
        decoded, seconds = self._runner.rate(at, int(first.tokens[0]))
        after = [self._runner.probe(at, first.tokens)]
        if last:
            after.append(self._with.context.decode(first.tokens, at))
        difference = max(relative_difference(found, before) for found in after)
        length, seed = first.question.context_tokens, first.question.seed
        if not difference <= FORK_LIMIT:
            raise EnvironmentFault(
                f"at {length:,} tokens a question asked again after all others differs by "
                f"{difference:.1e} of its largest logit (limit {FORK_LIMIT:g}): forks change the "
                "prefix here and the answers prove nothing; run it again in another folder with "
                "--fresh, or update llama-cpp-python"
            )
        # of all questions, also of those that a run asked which was killed before this line
        tokens = sum(len(b.tokens) for b in group)
        cost = replace(
            cost,
            question_tokens=tokens,
            decode_tokens=decoded,
            decode_seconds=seconds,
            fork_difference=difference,
        )
        self._with.answers.add_cost(length, seed, cost)

    def _ask_task(self, at: int, branches: Sequence[Branch]) -> None:
        """Ask the questions of one task that have no answer yet."""
        answers = self._with.answers
        self._runner.ask(
            at,
            [_asked(b) for b in branches],
            lambda place, said: answers.add(branches[place], said),
            lambda place: not answers.has(branches[place]),
        )


def _asked(branch: Branch) -> Prompt:
    return Prompt(branch.tokens, branch.candidates, branch.question.answer_tokens)
