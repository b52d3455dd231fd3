"""What is made of answers: scores by task and length, and what the gate looks at."""

from __future__ import annotations

from dataclasses import replace

import finished_levels
import pytest
from finished_levels import KEYS

from quantkit.config.recipe import Task
from quantkit.core.errors import InputError
from quantkit.retrieval.results import (
    Answer,
    Retrieval,
    Rung,
    answer_lines,
    parse_answers,
    score_tasks,
)
from quantkit.retrieval.statistics import hit_rate_bounds, lower_bound

SHORT, LONG = 8192, 32768


def answer(length: int, seed: int, index: int, hit: bool, task: str = "multikey") -> Answer:
    wrong = {"hit": False, "found": 0, "answer": "", "log_probability": -9.5}
    changes = {"log_probability": -0.5} if hit else wrong
    return finished_levels.answer(task, length, index, 8, seed, **changes)


def found(
    answers: list[Answer], minimum: float | None = 0.9, gate: tuple[Task, ...] = ()
) -> Retrieval:
    recipe = finished_levels.recipe_of(
        probes={"near-miss": 4, "absent": 4}, gate=gate, minimum_lower_bound=minimum
    )
    return finished_levels.retrieval(answers, recipe)


def test_scores_by_task_and_length() -> None:
    answers = [answer(LONG, s, i, i != 0) for s in (1, 2) for i in range(4)]
    answers += [answer(SHORT, 1, i, True) for i in range(4)]
    answers += [answer(LONG, 1, 0, False, "two-hop")]
    answers[0] = replace(answers[0], truncated=True)  # a miss, because it was cut off
    answers[1] = replace(answers[1], truncated=True)  # a hit in spite of it
    scores = score_tasks(answers, KEYS)
    assert [(s.name, s.context_tokens, s.hits, s.trials, s.truncated) for s in scores] == [
        ("multikey-16", SHORT, 4, 4, 0), ("multikey-32", LONG, 6, 8, 1), ("two-hop", LONG, 0, 1, 0),
    ]  # fmt: skip
    assert scores[1].log_probability == pytest.approx((6 * -0.5 + 2 * -9.5) / 8)
    assert scores[1].lower_bound == lower_bound(6, 8)
    assert scores[1].upper_bound == hit_rate_bounds([(3, 4), (3, 4)]).upper
    silent = [replace(one, log_probability=None) for one in answers]
    assert score_tasks(silent, KEYS)[1].log_probability is None


def test_clustered_bounds_look_at_seeds() -> None:
    uneven = [answer(LONG, s, i, s != 1) for s in (1, 2, 3) for i in range(20)]
    even = [answer(LONG, s, i, i < 13) for s in (1, 2, 3) for i in range(20)]
    plain = score_tasks(uneven, KEYS)[0].lower_bound
    assert score_tasks(uneven, KEYS, clustered=True)[0].lower_bound < plain - 0.2
    spread = score_tasks(even, KEYS, clustered=True)[0].lower_bound
    assert spread == pytest.approx(score_tasks(even, KEYS)[0].lower_bound)


def test_the_gate_looks_at_the_longest_context_and_the_named_tasks() -> None:
    answers = [answer(LONG, 1, i, i != 0) for i in range(8)]
    answers += [answer(SHORT, 1, i, False) for i in range(8)]
    answers += [answer(LONG, 1, i, True, "near-miss") for i in range(4)]
    assert [(s.task, s.context_tokens) for s in found(answers).gated] == [("multikey", LONG)]
    bound = lower_bound(7, 8)
    assert found(answers, bound).passed
    assert not found(answers, bound + 1e-9).passed
    assert found(answers, None).passed
    assert found(answers, lower_bound(4, 4), ("near-miss",)).passed
    assert not found(answers, lower_bound(4, 4) + 0.02, ("near-miss", "multikey")).passed
    assert not found(answers, 0.0, ("absent",)).passed  # what was not asked proves nothing


def test_an_answer_comes_back_from_its_line() -> None:
    one = replace(answer(LONG, 1, 3, True), answer='</script>\u2028\n"', margin=2.5, rank=1)
    assert parse_answers(answer_lines([one, one]).encode(), "it") == (one, one)
    for line, words in (("{", "line 2 is not valid JSON"), ('{"seed": "1"}', "line 2 is damaged")):
        with pytest.raises(InputError, match=words):
            parse_answers((answer_lines([one]) + line).encode(), "it")
    assert one.place == (LONG, 1, "multikey", 3)


def test_rates() -> None:
    rung = Rung(8, 7, 8000, 4.0, 10, 24, 1.5, 0.0)
    assert (rung.prefill_rate, rung.decode_rate) == (2000.0, 16.0)
    resumed = replace(rung, prefill_tokens=0, prefill_seconds=0.0, decode_tokens=0)
    assert (resumed.prefill_rate, resumed.decode_rate) == (None, None)
