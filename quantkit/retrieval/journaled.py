"""Answers as they are made of what a model said, kept line by line, and read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from quantkit.config.recipe import RetrievalRecipe
from quantkit.retrieval.branches import Branch
from quantkit.retrieval.results import Answer, Rung
from quantkit.retrieval.scoring import score


def answer_to(
    branch: Branch,
    recipe: RetrievalRecipe,
    text: str,
    log_probabilities: Sequence[float | None],
    rank: int | None,
    *,
    truncated: bool,
) -> Answer:
    """What a model answered to the question of `branch`, scored.

    Args:
        log_probabilities: of the branch's candidates, nats; none where they were not measured.
        truncated: it was stopped by the limit of answer tokens.
    """
    question = branch.question
    scored = score(
        question.task, question.values, text, thinking=recipe.thinking, digits=recipe.digits
    )
    right = log_probabilities[0] if log_probabilities else None
    lures = [nats for nats in log_probabilities[1:] if nats is not None]
    compared = 0 < len(lures) == len(log_probabilities) - 1
    return Answer(
        context_tokens=question.context_tokens,
        prompt_tokens=branch.prompt_tokens,
        seed=question.seed,
        task=question.task,
        index=question.index,
        depth=round(question.depth, 6),
        key=question.key,
        values=question.values,
        answer=text,
        hit=scored.hit,
        found=scored.found,
        truncated=truncated,
        log_probability=right,
        rank=rank,
        margin=right - max(lures) if right is not None and compared else None,
    )


def answer_line(answer: Answer) -> str:
    """A journal's line of an answer."""
    return json.dumps({"answer": asdict(answer)})


def answered_places(lines: Sequence[str]) -> set[tuple[int, int, str, int]]:
    """Which questions a journal holds answers to, as their `place`."""
    kept = (json.loads(line).get("answer") for line in lines)
    return {(a["context_tokens"], a["seed"], a["task"], a["index"]) for a in kept if a is not None}


def read_journal(
    lines: Sequence[str], keys: dict[int, int], recipe: RetrievalRecipe
) -> tuple[list[Answer], tuple[Rung, ...]]:
    """Answers by length, seed, task and index, and what each length cost.

    Costs are the sum over seeds and interrupted runs; lines of anything else are left out.

    Args:
        keys: context length → different keys hidden before its questions.
    """
    answers, rungs = [], dict[int, Rung]()
    for line in lines:
        entry: dict[str, Any] = json.loads(line)
        if "answer" in entry:
            answers.append(Answer.read(json.dumps(entry["answer"])))
        elif "rung" in entry:
            more = Rung(keys=0, **entry["rung"])
            there = rungs.get(more.context_tokens)
            rungs[more.context_tokens] = more if there is None else _summed(there, more)
    order = {str(task): number for number, task in enumerate(recipe.tasks)}
    answers.sort(key=lambda a: (a.context_tokens, a.seed, order[a.task], a.index))
    return answers, tuple(replace(rungs[n], keys=keys[n]) for n in sorted(rungs))


def _summed(one: Rung, other: Rung) -> Rung:
    differences = [r.fork_difference for r in (one, other) if r.fork_difference is not None]
    return Rung(
        context_tokens=one.context_tokens,
        keys=one.keys,
        prefill_tokens=one.prefill_tokens + other.prefill_tokens,
        prefill_seconds=one.prefill_seconds + other.prefill_seconds,
        question_tokens=one.question_tokens + other.question_tokens,
        decode_tokens=one.decode_tokens + other.decode_tokens,
        decode_seconds=one.decode_seconds + other.decode_seconds,
        fork_difference=max(differences, default=None),
    )
