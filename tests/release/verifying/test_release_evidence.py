"""validation.json against niah.jsonl: every figure that could be made better than it was."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import pytest
from finished_levels import answers_of, retrieval

from quantkit.config.recipe import RetrievalRecipe
from quantkit.release.verifying.claims import ValidationClaims
from quantkit.release.verifying.evidence import evidence_faults
from quantkit.retrieval.results import Answer
from quantkit.retrieval.run.verdict import validation_json

PROBES = ("near-miss", "absent", "two-hop")
ANSWERS = answers_of(0.05, seeds=(1, 2, 3))


def claims(
    answers: Sequence[Answer] = ANSWERS, *, clustered: bool = False, minimum: float | None = 0.9,
    gate: tuple[str, ...] = (),
) -> ValidationClaims:  # fmt: skip
    """What a build writes of `answers`."""
    recipe = RetrievalRecipe(
        probes=dict.fromkeys(PROBES, 8), clustered=clustered, seeds=(1, 2, 3), gate=gate,
        minimum_lower_bound=minimum,
    )  # fmt: skip
    found = retrieval(answers, clustered=clustered)
    content = json.dumps(validation_json(found, None, recipe, "q8_0"))
    return ValidationClaims.model_validate_json(content)


@pytest.mark.parametrize("clustered", [False, True])
@pytest.mark.parametrize("minimum", [0.3, 0.999, None])
@pytest.mark.parametrize("gate", [(), ("multikey", "two-hop")])
def test_what_a_build_writes_agrees(
    clustered: bool, minimum: float | None, gate: tuple[str, ...]
) -> None:
    said = claims(clustered=clustered, minimum=minimum, gate=gate)
    assert evidence_faults("Q4", said, ANSWERS) == []
    assert said.passed is (minimum != 0.999)


def doctored(**changes: Any) -> ValidationClaims:  # noqa: ANN401
    good = claims(minimum=0.999)
    return good.model_copy(update={"niah": good.niah.model_copy(update=changes)})


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
        ({"hits": 96}, "niah.hits is 96 in validation.json, "),
        ({"trials": 1000}, "niah.trials is 1000"),
        ({"lower_bound": 0.9999}, "niah.lower_bound is 0.9999"),
        ({"context_tokens": 1048576}, "niah.context_tokens is 1048576"),
        ({"mode": "multikey-128"}, "niah.mode is multikey-128"),
        ({"confidence": 0.5}, "a confidence of 0.5"),
        ({"clustered": True}, "multikey at 516096 tokens: lower_bound is"),
    ],
)
def test_a_headline_that_does_not_follow(changes: dict[str, Any], fault: str) -> None:
    assert first(fault, evidence_faults("Q4", doctored(**changes), ANSWERS))


def test_a_score_that_does_not_follow() -> None:
    good = claims()
    tasks = list(good.niah.tasks)
    for field, value in (("hits", 96), ("upper_bound", 1.0), ("truncated", 0),
                         ("log_probability", -0.0001)):  # fmt: skip
        better = [dataclasses.replace(tasks[3], **{field: value}), *tasks[:3], *tasks[4:]]
        found = evidence_faults("Q4", doctored(tasks=tuple(better)), ANSWERS)
        assert first(f"Q4: multikey at 516096 tokens: {field} is {value}", found), found
    fewer = evidence_faults("Q4", doctored(tasks=tuple(tasks[:-1])), ANSWERS)
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
    assert fault.startswith(f"Q4: niah.jsonl counts {len(misses)} answers for what they are not")
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
    good = claims(some)
    said = good.model_copy(update={"niah": good.niah.model_copy(update={"clustered": True})})
    assert first(
        "clustered bounds in validation.json, of 1 seeds", evidence_faults("Q4", said, some)
    )
