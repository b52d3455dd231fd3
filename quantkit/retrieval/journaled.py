"""The answers of a check and what they cost, in a journal that a killed run continues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.core.journal import Journal
from quantkit.llamacpp.reply import Reply
from quantkit.retrieval.branches import Branch, Prompts
from quantkit.retrieval.results import Answer, Rung
from quantkit.retrieval.scoring import score


@dataclass(frozen=True)
class Cost:
    """What the questions of a length took, or a part of them; fields as in `Rung`."""

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

    A line of the journal is `{"answer": …}` or `{"rung": …, "seed": …}`, the cost of a length or
    of a part of it. A length is closed by its cost: until then its questions are open, answered or
    not.
    """

    def __init__(self, journal: Journal, recipe: RetrievalRecipe) -> None:
        self.journal, self.recipe = journal, recipe
        self._places = set[tuple[int, int, str, int]]()
        self._closed = set[tuple[int, int]]()
        for line in journal.lines:
            entry = json.loads(line)
            if (a := entry.get("answer")) is not None:
                self._places.add((a["context_tokens"], a["seed"], a["task"], a["index"]))
            elif "rung" in entry:
                self._closed.add((entry["rung"]["context_tokens"], entry["seed"]))

    def has(self, branch: Branch) -> bool:
        """Whether the question of `branch` is answered."""
        return branch.question.place in self._places

    def open(self, prompts: Prompts) -> list[Branch]:
        """Branches that are not answered, or of a length that is not closed."""
        return [
            b
            for b in prompts.branches
            if not self.has(b) or (b.question.context_tokens, b.question.seed) not in self._closed
        ]

    def add(self, branch: Branch, said: Reply, cost: Cost | None = None) -> None:
        """Write an answer down, with its cost where it has one of its own."""
        answer = answer_to(branch, self.recipe, said)
        lines = [json.dumps({"answer": asdict(answer)})]
        if cost is not None:
            lines.append(self._cost_line(answer.context_tokens, answer.seed, cost))
        self.journal.append(*lines)
        self._places.add(answer.place)

    def add_cost(self, context_tokens: int, seed: int, cost: Cost) -> None:
        """Write down what a length took, or a part of it."""
        self.journal.append(self._cost_line(context_tokens, seed, cost))

    def _cost_line(self, context_tokens: int, seed: int, cost: Cost) -> str:
        self._closed.add((context_tokens, seed))
        rung = {"context_tokens": context_tokens, **asdict(cost)}
        return json.dumps({"rung": rung, "seed": seed})

    def forget(self) -> None:
        """Begin anew."""
        self.journal.forget()
        self._places.clear()
        self._closed.clear()


def answer_to(branch: Branch, recipe: RetrievalRecipe, said: Reply) -> Answer:
    """What a model answered to the question of `branch`, scored."""
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


def read_journal(
    lines: Sequence[str], keys: dict[int, int], recipe: RetrievalRecipe
) -> tuple[list[Answer], tuple[Rung, ...]]:
    """Answers by length, seed, task and index, and what each length cost.

    Costs are the sum over seeds and interrupted runs; lines of anything else are left out.

    Args:
        keys: context length → different keys hidden before its questions.
    """
    answers, costs = [], dict[int, Cost]()
    for line in lines:
        entry: dict[str, Any] = json.loads(line)
        if "answer" in entry:
            fields = entry["answer"]
            answers.append(Answer(**{**fields, "values": tuple(fields["values"])}))
        elif "rung" in entry:
            cost = dict(entry["rung"])
            length = cost.pop("context_tokens")
            more = Cost(**cost)
            costs[length] = costs[length] + more if length in costs else more
    order = {str(task): number for number, task in enumerate(recipe.tasks)}
    answers.sort(key=lambda a: (a.context_tokens, a.seed, order[a.task], a.index))
    return answers, tuple(Rung(n, keys[n], **asdict(costs[n])) for n in sorted(costs))
