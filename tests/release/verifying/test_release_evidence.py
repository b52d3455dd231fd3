"""validation.json against niah.jsonl: every figure that could be made better than it was."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from finished_levels import answers_of, recipe_of, retrieval

from quantkit.release.verifying.agreement import evidence_faults
from quantkit.retrieval.results import Answer, Validation

ANSWERS = answers_of(0.05, seeds=(1, 2, 3))


def claims(
    answers: Sequence[Answer] = ANSWERS, minimum: float | None = 0.9, **changes: object
) -> Validation:
    """What a build writes of `answers`."""
    recipe = recipe_of(seeds=(1, 2, 3), minimum_lower_bound=minimum, **changes)
    found = retrieval(answers, recipe)
    content = Validation(passed=found.passed, niah=found).text()
    return Validation.parse(content.encode(), "validation.json")


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("minimum", [0.3, 0.999, None])
@pytest.mark.parametrize("gate", [(), ("multikey", "two-hop")])
def test_what_a_build_writes_agrees(
    clustered: bool, minimum: float | None, gate: tuple[str, ...]
) -> None:
    said = claims(clustered=clustered, minimum=minimum, gate=gate)
    assert evidence_faults("Q4", said, ANSWERS) == []
    assert said.passed is (minimum != 0.999)


def doctored(recipe: Mapping[str, object] | None = None, **changes: object) -> Validation:
    good = claims(minimum=0.999)
    asked = good.niah.recipe.model_copy(update=recipe)
    niah = good.niah.model_copy(update={"recipe": asked, **changes})
    return good.model_copy(update={"niah": niah})


def first(fault: str, faults: list[str]) -> bool:
    return any(fault in found for found in faults)


def test_a_verdict_that_does_not_follow() -> None:
    passed = claims(minimum=0.999).model_copy(update={"passed": True})
    (fault,) = evidence_faults("Q4", passed, ANSWERS)
    assert fault.startswith("Q4: passed is True in validation.json, but ")
    assert fault.endswith("99.9% is needed")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"recipe": {"context_tokens": (8192, 1048576)}}, "asked at 1048576"),
        ({"recipe": {"context_tokens": ()}}, "asked at 0"),
        ({"confidence": 0.5}, "a confidence of 0.5"),
        ({"recipe": {"clustered": True}}, "multikey at 516096 tokens: lower_bound is"),
        ({"recipe": {"gate": ("updated",)}}, "no answers to what the gate looks at"),
        ({"recipe": {"minimum_lower_bound": 0.1}}, "passed is False"),
    ],
)
def test_conditions_that_are_not_those_of_the_answers(changes: dict[str, Any], fault: str) -> None:
    assert first(fault, evidence_faults("Q4", doctored(**changes), ANSWERS))


def test_a_score_that_does_not_follow() -> None:
    good = claims()
    tasks = list(good.niah.scores)
    for field, value in (("hits", 96), ("upper_bound", 1.0), ("truncated", 0),
                         ("log_probability", -0.0001)):  # fmt: skip
        better = [dataclasses.replace(tasks[3], **{field: value}), *tasks[:3], *tasks[4:]]
        found = evidence_faults("Q4", doctored(scores=tuple(better)), ANSWERS)
        assert first(f"Q4: multikey at 516096 tokens: {field} is {value}", found), found
    fewer = evidence_faults("Q4", doctored(scores=tuple(tasks[:-1])), ANSWERS)
    assert first("Q4: two-hop at 516096 tokens is only in niah.jsonl", fewer)


def test_answers_that_count_for_what_they_are_not() -> None:
    """Also where validation.json is made to follow."""
    misses = [a for a in ANSWERS if not a.hit and a.values]
    assert misses
    better = [
        dataclasses.replace(a, hit=True, found=1, truncated=False) if a in misses else a
        for a in ANSWERS
    ]
    found = evidence_faults("Q4", claims(better), better)
    (fault,) = found
    assert fault.startswith(f"Q4: {len(misses)} answers in niah.jsonl are scored wrongly")
    assert "a hit" in fault


def test_answers_that_are_missing_or_there_twice() -> None:
    hits = [a for a in ANSWERS if a.hit]
    assert evidence_faults("Q4", claims(), hits)  # the misses left out
    twice = [*ANSWERS, next(a for a in hits if a.context_tokens == 516096)]
    (fault,) = evidence_faults("Q4", claims(twice), twice)
    assert "more than once" in fault
    stray = [*ANSWERS, dataclasses.replace(ANSWERS[0], context_tokens=77)]
    assert first("answers at 77 tokens", evidence_faults("Q4", claims(), stray))
    assert evidence_faults("Q4", claims(), [])


def test_clustered_bounds_of_one_haystack_are_refused() -> None:
    some = [a for a in ANSWERS if a.seed == 1]
    assert first("not 1", evidence_faults("Q4", doctored({"clustered": True}), some))
    uneven = [*ANSWERS, *(dataclasses.replace(some[0], task="updated", index=n) for n in range(2))]
    assert first("not 1", evidence_faults("Q4", doctored({"clustered": True}), uneven))
