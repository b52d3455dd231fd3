"""The loop that asks open questions, and the journal of their answers and costs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, TypeAdapter

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.documents import Amount
from quantkit.core.progress import Progress
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.settings import Reply
from quantkit.retrieval.branches import Branch, Prompts, Question
from quantkit.retrieval.results import Answer, DeviceUse, Retrieval, Rung, score_tasks
from quantkit.retrieval.scoring import score

Likeliest = tuple[tuple[int, float], ...]
"""(token, log-probability), from the likeliest down."""


@dataclass(frozen=True)
class Cost:
    """The cost of the questions of a length, or of a part of them; fields as in `Rung`."""

    prefill_tokens: NonNegativeInt = 0
    prefill_seconds: Amount = 0.0
    question_tokens: NonNegativeInt = 0
    decode_tokens: NonNegativeInt = 0
    decode_seconds: Amount = 0.0
    fork_difference: Amount | None = None

    def __add__(self, other: Cost) -> Cost:
        differences = [c.fork_difference for c in (self, other) if c.fork_difference is not None]
        return Cost(
            self.prefill_tokens + other.prefill_tokens,
            self.prefill_seconds + other.prefill_seconds,
            self.question_tokens + other.question_tokens,
            self.decode_tokens + other.decode_tokens,
            self.decode_seconds + other.decode_seconds,
            max(differences, default=None),
        )


@dataclass(frozen=True)
class Tested:
    """The result of a server's self-test.

    Attributes:
        difference: nats, largest of log-probabilities after a reused prefix from those after a
            fresh prefill.
        forces: whether the server can be made to say given tokens, and returns their probability.
        likeliest: after the fresh prefill: identifies the served file.
    """

    difference: NonNegativeFloat
    forces: bool
    likeliest: Likeliest


@dataclass(frozen=True, kw_only=True)
class _RungCost(Cost):
    context_tokens: int


@dataclass(frozen=True)
class _Line:
    """One of an answer, the cost of a length of a seed or of a part of it, and a self-test."""

    answer: Answer | None = None
    rung: _RungCost | None = None
    seed: int | None = None
    tested: Tested | None = None


_LINE = TypeAdapter(_Line)


class Answers:
    """The answers of this run and of those that it continues, with their costs and self-tests.

    A length is closed by its cost: until then its questions are open, answered or not.

    Args:
        prompts: of each seed; the journal holds nothing of others.

    Raises:
        InputError: a line of the journal is damaged, or of other questions.
    """

    def __init__(
        self, journal: Journal, recipe: RetrievalRecipe, prompts: Sequence[Prompts]
    ) -> None:
        self._journal, self.recipe = journal, recipe
        self._answers = dict[tuple[int, int, str, int], Answer]()
        self._costs = dict[tuple[int, int], Cost]()
        self.tests = list[Tested]()
        questions = {b.question.place: b.question for one in prompts for b in one.branches}
        rungs = {(length, seed) for length, seed, *_ in questions}

        def is_ours(line: _Line) -> bool:
            if (answer := line.answer) is not None:
                question = questions.get(answer.place)
                return (
                    question is not None
                    and (answer.key, answer.values) == (question.key, question.values)
                    and _scored(question, recipe, answer.answer) == (answer.hit, answer.found)
                )
            if line.rung is not None:
                return (line.rung.context_tokens, line.seed) in rungs
            return line.tested is not None

        for line in journal.units(_LINE, is_ours):
            if line.answer is not None:
                self._answers[line.answer.place] = line.answer
            elif line.rung is not None and line.seed is not None:
                cost = asdict(line.rung)
                self._add_cost(cost.pop("context_tokens"), line.seed, Cost(**cost))
            elif line.tested is not None:
                self.tests.append(line.tested)

    def has(self, branch: Branch) -> bool:
        return branch.question.place in self._answers

    def open(self, prompts: Prompts) -> list[Branch]:
        """Branches that are not answered, or of a length that is not closed."""
        return [
            b
            for b in prompts.branches
            if not self.has(b) or (b.question.context_tokens, b.question.seed) not in self._costs
        ]

    def add(self, branch: Branch, said: Reply, cost: Cost | None = None) -> None:
        """Append an answer, with its cost if it has one of its own."""
        answer = _answer(branch, self.recipe, said)
        lines = [json.dumps({"answer": asdict(answer)})]
        if cost is not None:
            lines.append(self._add_cost(answer.context_tokens, answer.seed, cost))
        self._journal.append(*lines)
        self._answers[answer.place] = answer

    def add_cost(self, branch: Branch, cost: Cost) -> None:
        """Append the cost of the length of `branch`, or of a part of it."""
        question = branch.question
        self._journal.append(self._add_cost(question.context_tokens, question.seed, cost))

    def add_test(self, tested: Tested) -> None:
        self._journal.append(json.dumps({"tested": asdict(tested)}))
        self.tests.append(tested)

    def _add_cost(self, context_tokens: int, seed: int, cost: Cost) -> str:
        """The journal's line."""
        place = context_tokens, seed
        self._costs[place] = self._costs[place] + cost if place in self._costs else cost
        rung = {"context_tokens": context_tokens, **asdict(cost)}
        return json.dumps({"rung": rung, "seed": seed})

    def forget(self) -> None:
        """Discard all answers, costs and self-tests."""
        self._journal.forget()
        for kept in (self._answers, self._costs, self.tests):
            kept.clear()

    def result(
        self,
        prompts: Sequence[Prompts],
        kv_type: str,
        fork_difference: float | None,
        *,
        forked: bool = False,
        memory: tuple[DeviceUse, ...] = (),
    ) -> Retrieval:
        """The result, with answers by length, seed, task and index; `prompts` are of each seed."""
        keys = prompts[0].keys
        order = {str(task): number for number, task in enumerate(self.recipe.tasks)}
        answers = sorted(
            self._answers.values(), key=lambda a: (a.context_tokens, a.seed, order[a.task], a.index)
        )
        costs = dict[int, Cost]()
        for (length, _), cost in self._costs.items():
            costs[length] = costs[length] + cost if length in costs else cost
        return Retrieval(
            recipe=self.recipe,
            kv_type=kv_type,
            answers=tuple(answers),
            scores=score_tasks(answers, keys, clustered=self.recipe.clustered),
            rungs=tuple(Rung(n, keys[n], **asdict(costs[n])) for n in sorted(costs)),
            forked=forked,
            fork_difference=fork_difference,
            prefill_tokens=sum(one.prefill_tokens for one in prompts),
            question_tokens=sum(one.question_tokens for one in prompts),
            classic_tokens=sum(one.classic_tokens for one in prompts),
            memory=memory,
        )


def _scored(question: Question, recipe: RetrievalRecipe, text: str) -> tuple[bool, int]:
    """(hit, found) of an answer's text."""
    values, thinking = question.values, recipe.thinking
    scored = score(question.task, values, text, thinking=thinking, digits=recipe.digits)
    return scored.hit, scored.found


def _answer(branch: Branch, recipe: RetrievalRecipe, said: Reply) -> Answer:
    """The scored answer of a model to the question of `branch`."""
    question = branch.question
    hit, found = _scored(question, recipe, said.text)
    right = said.log_probabilities[0] if said.log_probabilities else None
    lures = [nats for nats in said.log_probabilities[1:] if nats is not None]
    compared = 0 < len(lures) == len(said.log_probabilities) - 1
    return Answer(
        context_tokens=question.context_tokens,
        prompt_tokens=branch.prompt_tokens,
        seed=question.seed,
        task=question.task,
        index=question.index,
        depth=round(question.depth, 6),
        key=question.key,
        values=question.values,
        answer=said.text,
        hit=hit,
        found=found,
        truncated=said.truncated,
        log_probability=right,
        rank=said.rank,
        margin=right - max(lures) if right is not None and compared else None,
    )


class Respondent:
    """A model that is asked: in this process (`check_child`) or a server (`check_server`)."""

    def prepare(self, prompts: Sequence[Prompts]) -> bool:
        """Check that answers prove something; True if kept answers had to be discarded.

        Raises:
            EnvironmentFault: they prove nothing.
        """
        return False

    def work(self, prompts: Prompts, left: Sequence[Branch]) -> tuple[int, int]:
        """(tokens done, tokens in all) of one seed whose open questions are `left`."""
        raise NotImplementedError

    def begin(self, prompts: Prompts, left: Sequence[Branch]) -> None:
        """Get ready for the open questions of one seed, at least one."""

    def ask(self, prompts: Prompts, group: Sequence[Branch]) -> None:
        """Ask open questions of one rung, and journal answers and costs."""
        raise NotImplementedError


def ask_all(
    respondent: Respondent, prompts: Sequence[Prompts], answers: Answers, progress: Progress
) -> None:
    """Ask every question that is open; `prompts` are of each seed."""

    def start() -> None:
        work = [respondent.work(one, answers.open(one)) for one in prompts]
        done, total = (sum(parts) for parts in zip(*work, strict=True))
        progress.start(total, "tokens", done=done)

    start()
    if respondent.prepare(prompts):
        start()
    for one in prompts:
        left = answers.open(one)
        if not left:
            continue
        respondent.begin(one, left)
        for _, group in itertools.groupby(left, key=lambda branch: branch.rung):
            respondent.ask(one, list(group))
