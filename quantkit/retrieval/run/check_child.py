"""The child process of the retrieval check: prompts, a context that fits, and the questions."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.errors import EnvironmentFault, GateError
from quantkit.core.files import identity
from quantkit.core.progress import Emitted, Progress
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.child import Emit
from quantkit.llamacpp.ggml import library_version
from quantkit.llamacpp.llama import Context, Model, Vocabulary
from quantkit.llamacpp.memory_plan import DeviceMemory, used_memory
from quantkit.llamacpp.prompts import (
    ForkTest,
    Prompt,
    PromptRunner,
    Slots,
    relative_difference,
    try_forks,
)
from quantkit.llamacpp.saved_state import SavedState
from quantkit.llamacpp.settings import Reply, device_parts
from quantkit.models.gguf_source import GGUFSource
from quantkit.retrieval.answers import Answers, Cost, Respondent, ask_all
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.prompts import all_prompts
from quantkit.retrieval.results import DeviceUse, Retrieval
from quantkit.retrieval.run.check import CheckSettings
from quantkit.retrieval.run.check_memory import most_slots, plan_context
from quantkit.retrieval.scoring import THINKING_TAGS

ALONE_TOLERANCE = 1e-3
"""Of a fork's logits, relative; equal to the bit where computed in the same order."""
TOGETHER_TOLERANCE = 0.1
"""Of questions side by side: kernels for more tokens at a time round otherwise, by a hundredth
of the largest logit in F16; a state that was not copied differs by as much as the logits."""
FORK_LIMIT = 1e-2
"""Largest difference of a question asked again after all others, relative to its largest logit. On
a CPU the logits are equal to the bit; a device may add up in another order. Another prefix differs
by about 1."""


def ask_in_child(
    model_path: Path,
    recipe: RetrievalRecipe,
    settings: CheckSettings,
    work: Path,
    haystack: Path | None,
    emit: Emit,
) -> Retrieval:
    """Body of the child process of `check_retrieval`."""
    progress = Emitted(emit)
    shape = Model(model_path, settings.devices, weightless=True)
    longest, trained = max(recipe.context_tokens), shape.trained_context_tokens
    if (
        longest > trained and not settings.beyond_training
    ):  # llama-server would serve less than was planned
        raise GateError(
            f"{model_path.name} has a context_length of {trained} tokens in its metadata, and "
            f"is to be checked at {longest}: llama-server would cut its context there; make it "
            "anew from a checkpoint that says more, or check a shorter context"
        )
    prompts = prompts_for(shape, recipe, haystack)
    branches = [branch for one in prompts for branch in one.branches]
    most = most_slots(recipe, settings, branches)
    planned = plan_context(shape, most, settings, branches)
    if planned.slots != most:
        progress.note(_fewer_text(planned.slots))
    shape.close()
    model = Model(model_path, settings.devices)
    context = Context(model, planned.sizes)
    memory = _device_uses(planned.memory, used_memory(context.handle))
    slots = planned.slots or Slots(1, 0)
    test = try_forks(context, model.vocab, slots) if planned.slots else None
    forked = test is not None and test.alone <= ALONE_TOLERANCE
    if test and (not forked or test.together > TOGETHER_TOLERANCE):
        slots = Slots(1, slots.candidates)
    _tell(progress, test, forked, prompts)
    # everything that answers depend on, apart from the model
    purpose = {
        "recipe": recipe.model_dump(mode="json"),
        "prompts": [one.digest for one in prompts],
        "kv_type": settings.kv_type,
        "ubatch_tokens": settings.ubatch_tokens,
        "forked": forked,
        "devices": device_parts(settings.devices),
    }
    answers = Answers(Journal(work / "answers.jsonl", json.dumps(purpose)), recipe, prompts)
    respondent = FreshPrefills(context, model.vocab, slots, answers, progress)
    if forked:
        # everything that a saved prefix depends on, apart from its tokens
        parts = [identity(GGUFSource(model_path).paths), asdict(planned.sizes), purpose["devices"]]
        made = json.dumps([*parts, library_version()], sort_keys=True)
        saved = {
            one.seed: SavedState(work, f"{made} {one.digest}", settings.save_seconds, progress.note)
            for one in prompts
        }
        respondent = Forks(context, model.vocab, slots, answers, progress, saved)
    ask_all(respondent, prompts, answers, progress)
    alone = test.alone if test else None
    return answers.result(prompts, settings.kv_type, alone, forked=forked, memory=memory)


def prompts_for(shape: Model, recipe: RetrievalRecipe, haystack: Path | None) -> list[Prompts]:
    """The prompts of each seed, with the file's own tokenizer and chat template."""
    vocab = shape.vocab
    special = vocab.token_text(vocab.bos), vocab.token_text(vocab.eos)
    begin = vocab.text_bos
    return all_prompts(vocab.tokenize, shape.chat_template(), special, recipe, haystack, begin)


def _device_uses(
    planned: Mapping[str, DeviceMemory], used: Mapping[str, DeviceMemory]
) -> tuple[DeviceUse, ...]:
    nothing = DeviceMemory()
    return tuple(
        DeviceUse(
            device, *astuple(planned.get(device, nothing)), *astuple(used.get(device, nothing))
        )
        for device in dict.fromkeys([*planned, *used])
    )


def _fewer_text(slots: Slots | None) -> str:
    if slots is None:
        return "memory holds no forks beside the prefix: it takes much longer"
    return (
        f"memory holds {slots.questions} questions and {slots.candidates} answers to compare "
        "side by side, fewer than asked for: it takes longer"
    )


def _tell(
    progress: Progress, test: ForkTest | None, forked: bool, prompts: Sequence[Prompts]
) -> None:
    """Note, before the prefill, how many tokens the check decodes, and why.

    Args:
        test: None if nothing is forked.
    """
    haystack = sum(one.prefill_tokens for one in prompts)
    questions = sum(one.question_tokens for one in prompts)
    classic = sum(one.classic_tokens for one in prompts)
    if test is None:
        progress.note(f"each question after a prefill of its own: {classic:,} tokens")
        return
    if forked and test.together > TOGETHER_TOLERANCE:
        progress.note(
            f"questions side by side differ from those asked alone by {test.together:.1e} of "
            f"the largest logit here (limit {TOGETHER_TOLERANCE}): they are asked one by one"
        )
    if forked:
        progress.note(
            f"{haystack:,} tokens of haystack and {questions:,} of questions; one prefill a "
            f"question would take {classic:,}, {classic / (haystack + questions):.1f} times as many"
        )
    else:
        progress.note(
            f"a forked sequence differs from a fresh decode by {test.alone:.1e} on this device "
            f"(limit {ALONE_TOLERANCE:.0e}): each question gets a prefill of its own, "
            f"{classic:,} tokens instead of {haystack + questions:,}"
        )


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
            said = self._runner.ask_without_fork(branch.leaves_at, asked(branch))
            self.answers.add(branch, said, cost)

    def _prefill(self, prompts: Prompts, start: int, stop: int) -> float:
        """Decode the stream from `start` to `stop`; the seconds that it took."""
        began = time.perf_counter()
        self.context.prefill(prompts.stream[start:stop], start)
        self.context.wait()
        return time.perf_counter() - began


@dataclass(frozen=True)
class _Paid:
    """What a saved stream has cost since `rung` was begun."""

    rung: tuple[int, ...]
    cost: Cost


_PAID = TypeAdapter(_Paid)


@dataclass
class Forks(FreshPrefills):
    """The stream is decoded once; questions are asked on forks where they leave it.

    Attributes:
        saved: by seed, where the stream is saved now and then.
    """

    saved: Mapping[int, SavedState]
    _position: int = 0
    _paid: _Paid | None = None

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        stream = len(prompts.stream)
        done = self.saved[prompts.seed].position(stream) if left else stream
        done += sum(len(b.tokens) for b in prompts.branches if self.answers.has(b))
        return done, prompts.prefill_tokens + prompts.question_tokens

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        """Load the saved prefix, and decode what earlier runs have journaled the cost of."""
        self.context.clear()
        saved = self.saved[prompts.seed].load(self.context, prompts.stream)
        self._position, facts = saved
        try:
            self._paid = _PAID.validate_python(facts) if self._position else None
        except ValidationError:
            self._paid = None
        # its cost is not known, or it was saved beyond an open question
        if self._paid is None or self._position > left[0].leaves_at:
            self.context.clear()
            self._position, self._paid = 0, None
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
            paid = asdict(_Paid(rung, cost))
            self.saved[prompts.seed].save(self.context, prompts.stream[:end], paid)
            self.progress.advance(end - at)
        self._position = max(self._position, stop)
        return cost

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        rung, paid = group[0].rung, self._paid
        cost = paid.cost if paid is not None and paid.rung == rung else Cost()
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
        self._runner.ask(branch.leaves_at, [asked(branch)], lambda _place, one: said.append(one))
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
            [asked(b) for b in branches],
            lambda place, said: self.answers.add(branches[place], said),
            lambda place: not self.answers.has(branches[place]),
        )


def asked(branch: Branch) -> Prompt:
    return Prompt(branch.tokens, branch.candidates, branch.question.answer_tokens)
