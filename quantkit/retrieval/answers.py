"""The loop that asks open questions, and the journal of their answers and costs."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.progress import Progress
from quantkit.core.work_folders import Journal
from quantkit.llamacpp.settings import Reply
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.results import Answer, DeviceUse, Retrieval, Rung, score_tasks
from quantkit.retrieval.scoring import score


@dataclass(frozen=True)
class Cost:
    """The cost of the questions of a length, or of a part of them; fields as in `Rung`."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    question_tokens: int = 0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    fork_difference: float | None = None

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


class Answers:
    """The answers of this run and of those that it continues.

    A line of the journal is `{"answer": …}`, or `{"rung": …, "seed": …}` with the cost of a length
    or of a part of it; others are ignored. A length is closed by its cost: until then its questions
    are open, answered or not.
    """

    def __init__(self, journal: Journal, recipe: RetrievalRecipe) -> None:
        self.journal, self.recipe = journal, recipe
        self._answers = dict[tuple[int, int, str, int], Answer]()
        self._costs = dict[tuple[int, int], Cost]()
        for entry in journal.values():
            if fields := entry.get("answer"):
                answer = Answer(**{**fields, "values": tuple(fields["values"])})
                self._answers[answer.place] = answer
            elif cost := entry.get("rung"):
                self._add_cost(cost.pop("context_tokens"), entry["seed"], Cost(**cost))

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
        self.journal.append(*lines)
        self._answers[answer.place] = answer

    def add_cost(self, branch: Branch, cost: Cost) -> None:
        """Append the cost of the length of `branch`, or of a part of it."""
        question = branch.question
        self.journal.append(self._add_cost(question.context_tokens, question.seed, cost))

    def _add_cost(self, context_tokens: int, seed: int, cost: Cost) -> str:
        """The journal's line."""
        place = context_tokens, seed
        self._costs[place] = self._costs[place] + cost if place in self._costs else cost
        rung = {"context_tokens": context_tokens, **asdict(cost)}
        return json.dumps({"rung": rung, "seed": seed})

    def forget(self) -> None:
        """Discard all answers and costs."""
        self.journal.forget()
        self._answers.clear()
        self._costs.clear()

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


def _answer(branch: Branch, recipe: RetrievalRecipe, said: Reply) -> Answer:
    """The scored answer of a model to the question of `branch`."""
    question = branch.question
    scored = score(
        question.task, question.values, said.text, thinking=recipe.thinking, digits=recipe.digits
    )
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
        hit=scored.hit,
        found=scored.found,
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
