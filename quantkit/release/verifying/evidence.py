"""validation.json against niah.jsonl: answers scored again, hits and bounds worked out again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields

from quantkit.config.recipe import CLUSTERS
from quantkit.release.verifying.claims import ValidationClaims, shown
from quantkit.retrieval.results import MAIN_TASKS, Answer, TaskScore, score_tasks
from quantkit.retrieval.scoring import FEWEST_DIGITS, score
from quantkit.retrieval.statistics import CONFIDENCE

_CLOSE = 1e-9
"""Relative: bounds and means are the same numbers but for the last digits of another library."""


def evidence_faults(
    level: str, validation: ValidationClaims, answers: Sequence[Answer]
) -> list[str]:
    """How a validation.json differs from what the answers in niah.jsonl give."""
    faults = _answer_faults(level, validation, answers)
    niah = validation.niah
    keys = {task.context_tokens: task.keys for task in niah.tasks}
    stray = sorted({a.context_tokens for a in answers} - keys.keys())
    if stray:
        return [*faults, f"{level}: niah.jsonl has answers at {stray[0]} tokens, which are not in "
                "validation.json"]  # fmt: skip
    if niah.confidence != CONFIDENCE:
        return [*faults, f"{level}: bounds of a confidence of {niah.confidence} in validation.json "
                f"cannot be worked out again; quantkit's is {CONFIDENCE}"]  # fmt: skip
    seeds = {answer.seed for answer in answers}
    if niah.clustered and len(seeds) < CLUSTERS:
        return [*faults, f"{level}: clustered bounds in validation.json, of {len(seeds)} seeds"]
    found = {
        (s.task, s.context_tokens): s for s in score_tasks(answers, keys, clustered=niah.clustered)
    }
    said = {(s.task, s.context_tokens): s for s in niah.tasks}
    for place in sorted(found.keys() | said.keys()):
        faults += _score_faults(level, place, said.get(place), found.get(place))
    return faults + _headline_faults(level, validation, list(found.values()))


def _answer_faults(
    level: str, validation: ValidationClaims, answers: Sequence[Answer]
) -> list[str]:
    """Answers that count more than once, or for what they are not."""
    twice = [place for place, count in Counter(a.place for a in answers).items() if count > 1]
    faults = [
        f"{level}: niah.jsonl answers {shown(task)} {index} of seed {seed} at {context} tokens "
        "more than once"
        for context, seed, task, index in twice[:1]
    ]
    digits = min((len(v) for a in answers for v in a.values), default=FEWEST_DIGITS)
    wrong = []
    for answer in answers:
        scored = score(
            answer.task, answer.values, answer.answer,
            thinking=validation.niah.thinking, digits=max(digits, FEWEST_DIGITS),
        )  # fmt: skip
        if (scored.hit, scored.found) != (answer.hit, answer.found):
            wrong.append(answer)
    if wrong:
        first = wrong[0]
        faults.append(
            f"{level}: niah.jsonl counts {len(wrong)} answers for what they are not, the first "
            f"{shown(first.task)} {first.index} of seed {first.seed} at {first.context_tokens} "
            f"tokens, a {'hit' if first.hit else 'miss'}: {shown(first.answer)!r}"
        )
    return faults


def _score_faults(
    level: str, place: tuple[str, int], said: TaskScore | None, found: TaskScore | None
) -> list[str]:
    where = f"{level}: {shown(place[0])} at {place[1]} tokens"
    if said is None or found is None:
        return [f"{where} is only in {'niah.jsonl' if said is None else 'validation.json'}"]
    return [
        f"{where}: {field.name} is {getattr(said, field.name)} in validation.json, "
        f"{getattr(found, field.name)} by niah.jsonl"
        for field in fields(TaskScore)
        if not _same(getattr(said, field.name), getattr(found, field.name))
    ]


def _headline_faults(
    level: str, validation: ValidationClaims, scores: Sequence[TaskScore]
) -> list[str]:
    """The figures on top of validation.json, and its verdict."""
    niah = validation.niah
    longest = max((s.context_tokens for s in scores), default=0)
    last = {s.task: s for s in scores if s.context_tokens == longest}
    gated = [last[task] for task in niah.gate or MAIN_TASKS if task in last]
    if not gated or (niah.gate and len(gated) < len(niah.gate)):
        return [f"{level}: niah.jsonl has no answers to what the gate looks at"]
    first = gated[0]
    found = {
        "mode": first.name, "context_tokens": longest, "trials": first.trials, "hits": first.hits,
        "lower_bound": first.lower_bound,
    }  # fmt: skip
    faults = [
        f"{level}: niah.{key} is {shown(str(getattr(niah, key)))} in validation.json, {value} by "
        "niah.jsonl"
        for key, value in found.items()
        if not _same(getattr(niah, key), value)
    ]
    least = niah.minimum_lower_bound
    passed = least is None or all(s.lower_bound >= least for s in gated)
    if passed != validation.passed:
        faults.append(
            f"{level}: passed is {validation.passed} in validation.json, but {first.hits} of "
            f"{first.trials} hits prove {first.lower_bound:.1%} and "
            f"{'nothing' if least is None else f'{least:.1%}'} is needed"
        )
    return faults


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=_CLOSE, abs_tol=1e-300)
    return one == other
