"""A retrieval check in sentences, and its answers by length and depth."""

from __future__ import annotations

import math
from typing import Any

import pytest
from finished_levels import KEYS, answer, answers_of, recipe_of, retrieval

from quantkit.config.recipe import RetrievalRecipe
from quantkit.report.retrieval import (
    check_text,
    cost_text,
    forks_text,
    gate_text,
    grid_of,
    nats_text,
    rate_text,
)
from quantkit.retrieval.results import Retrieval, Rung, TaskScore
from quantkit.retrieval.statistics import hit_rate_bounds


def scored(*scores: tuple[str, int, float], **changes: Any) -> Retrieval:  # noqa: ANN401
    """A check of 64 questions for each (task, hits, lower bound)."""
    asked = recipe_of(gate=[task for task, _, _ in scores], **changes)
    found = [TaskScore(t, 516096, 128, 64, hits, lower, 1.0, 0, None) for t, hits, lower in scores]
    return changed(recipe=asked, scores=tuple(found))


def changed(**changes: Any) -> Retrieval:  # noqa: ANN401
    return retrieval([answer("multikey", 8192, 0, 1)]).model_copy(update=changes)


MAIN, PROBE = ("multikey", 64, 0.954), ("two-hop", 50, 0.68)


def test_the_gate() -> None:
    assert gate_text(scored(MAIN)) == (
        "Gate: the exact lower bound of the hit rate at 504K tokens (one-sided, 95 %) must reach "
        "90.0 %. multikey-128: 64 of 64 found, at least 95.4 %. Result: passed."
    )
    both = gate_text(scored(MAIN, PROBE, clustered=True, seeds=(1, 2, 3)))
    assert "allows for the spread between seeds" in both
    assert both.endswith("two-hop: 50 of 64 found, at least 68.0 %. Result: two-hop fell short.")
    assert gate_text(scored(PROBE, minimum_lower_bound=None)).startswith("No gate; ")


def test_the_cost_beside_one_prefill_a_question() -> None:
    found = changed(prefill_tokens=90_000, question_tokens=10_000, classic_tokens=1_250_000)
    words = cost_text(found, forked=True)
    assert "90,000 tokens and questions of 10,000" in words
    assert "takes 1,250,000, 12.5 times as many." in words
    alone = cost_text(found, forked=False)
    assert "1,250,000 tokens in all" in alone
    assert "100,000" in alone


def forks(self_test: float, *differences: float | None) -> str:
    rungs = tuple(Rung(8192, 16, 8000, 4.0, 4000, 24, 2.0, one) for one in differences)
    return forks_text(changed(fork_difference=self_test, rungs=rungs))


def test_whether_forks_are_exact() -> None:
    assert forks(0.0, None) == (
        "Forks are exact: a fork beside a fresh decode gave the same logits, bit for bit."
    )
    assert "a question asked again after all others at 2 lengths" in forks(0.0, 0.0, 0.0)
    assert "at most 2.5e-06 of the largest logit" in forks(0.0, 0.0, 2.5e-6)
    assert "at most 1.0e-03" in forks(1e-3)


def test_what_was_asked() -> None:
    asked = recipe_of(needles=24, seeds=(1, 2, 3), thinking=True, answer_tokens=512)
    one_pass = check_text(changed(recipe=asked, kv_type="f16"))
    for words in ("24 are asked", "3 haystacks", "after thinking", "KV cache in f16"):
        assert words in one_pass
    classic = RetrievalRecipe(mode="classic")
    assert check_text(changed(recipe=classic)).startswith("Retrieval is single")


@pytest.mark.parametrize(
    ("nats", "text"),
    [
        (None, "–"), (-0.0214, "−0.021"), (-0.00004, "0"), (0.0, "0"), (-0.0004, "−0.0004"),
        (-0.00996, "−0.010"), (-1.236, "−1.24"),
        (-0.9996, "−1.00"), (-31.94, "−31.9"), (6.5, "6.50"), (-math.inf, "−∞"), (math.inf, "∞"),
    ],
)  # fmt: skip
def test_nats(nats: float | None, text: str) -> None:
    assert nats_text(nats) == text


def test_rates() -> None:
    assert rate_text(2000.0) == "2,000"
    assert rate_text(24 / 1.04) == "23.1"
    assert rate_text(None) == "–"


def test_a_task_is_called_by_its_keys() -> None:
    found = retrieval([*answers_of(0.0), answer("updated", 8192, 0, 1)])
    names = [s.name for s in found.scores if s.task == "multikey"]
    assert names == [f"multikey-{keys}" for keys in KEYS.values()]


def test_cells_are_tenths_of_the_depth() -> None:
    depths = (0.0, 0.0999, 0.1, 0.55, 0.9999, 1.0)
    answers = [answer("multikey", 8192, i, 6, depth=depth) for i, depth in enumerate(depths)]
    grid = grid_of([*answers, answer("two-hop", 4096, 0, 1)], "multikey")
    assert grid.lengths == (8192,)
    assert grid.bands[0] == "0–10"
    assert grid.bands[9] == "90–100"
    assert {place: cell.trials for place, cell in grid.cells.items()} == {
        (8192, 0): 2, (8192, 1): 1, (8192, 5): 1, (8192, 9): 2,
    }  # fmt: skip


def test_a_cell_counts_what_is_in_it() -> None:
    answers = [
        answer("multikey", 8192, 3, 4, depth=0.02, hit=False, log_probability=-3.0),
        answer("multikey", 8192, 1, 4, depth=0.01, log_probability=-1.0),
        answer("multikey", 8192, 2, 4, depth=0.03, hit=False, truncated=True, log_probability=None),
        answer("multikey", 8192, 0, 4, depth=0.04, truncated=True, log_probability=-2.0),
    ]
    cell = grid_of(answers, "multikey").cells[8192, 0]
    assert [a.index for a in cell.answers] == [1, 3, 2, 0], "shallowest first"
    assert (cell.trials, cell.hits, cell.truncated, cell.share) == (4, 2, 1, 0.5)
    assert cell.log_probability == pytest.approx(-2.0)
    assert cell.probability == pytest.approx(math.exp(-2))
    assert cell.bounds == hit_rate_bounds([(2, 4)])


def test_an_absent_key_has_no_depth() -> None:
    answers = [answer("absent", 8192, i, 3, depth=i / 2) for i in range(3)]
    grid = grid_of(answers, "absent")
    assert grid.bands == ("any",)
    assert grid.cells[8192, 0].trials == 3
    assert not grid.has_log_probabilities


def test_an_impossible_answer_has_no_probability() -> None:
    never = answer("multikey", 8192, 0, 1, depth=0.0, log_probability=-math.inf)
    assert grid_of([never], "multikey").cells[8192, 0].probability == 0
