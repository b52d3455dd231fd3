"""Scoring and bounds against published values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantkit.retrieval.results import Answer, Retrieval, score_lengths
from quantkit.retrieval.scoring import is_hit
from quantkit.retrieval.statistics import lower_bound, needed_hits


def test_known_bounds() -> None:
    # "at least 95 % with one-sided 95 % confidence" takes 59 of 59, 92 of 93 or 122 of 124
    assert lower_bound(59, 59) >= 0.95 > lower_bound(58, 58)
    assert lower_bound(92, 93) >= 0.95 > lower_bound(91, 92)
    assert lower_bound(122, 124) >= 0.95 > lower_bound(121, 123)
    assert needed_hits(59, 0.95) == 59
    assert needed_hits(124, 0.95) == 122
    assert needed_hits(3, 0.95) is None
    assert lower_bound(0, 0) == lower_bound(0, 9) == 0.0


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_bound_is_below_the_rate_and_grows(case: tuple[int, int]) -> None:
    hits, trials = case
    assert lower_bound(hits, trials) <= hits / trials
    if hits < trials:
        assert lower_bound(hits, trials) < lower_bound(hits + 1, trials)


@pytest.mark.parametrize(
    ("answer", "hit"),
    [
        ("48213", True),
        ("The number is 48213.", True),
        ("<think>maybe 11111</think> 48213", True),
        ("<think>48213", True),  # cut off before it stopped thinking: nothing else to look at
        ("<think>48213</think> 11111", False),
        ("4821", False),
        ("", False),
    ],
)
def test_hits(answer: str, hit: bool) -> None:
    assert is_hit(answer, "48213") is hit


def answer(length: int, seed: int, index: int, hit: bool) -> Answer:
    return Answer(length, 1000 * seed, seed, index, 0.5, "k", "v", "a", hit, False)


def test_scores_by_length_and_gate() -> None:
    answers = [answer(8, s, i, i != 0) for s in (1, 2) for i in range(4)]
    answers += [answer(4, 1, i, True) for i in range(4)]
    scores = score_lengths(answers)
    assert [(s.context_tokens, s.hits, s.trials) for s in scores] == [(4, 4, 4), (8, 6, 8)]
    found = Retrieval(tuple(answers), scores, 0.0)
    assert found.gate.context_tokens == 8
    assert found.prefill_tokens == 1000 + 2000 + 1000
    assert found.passes(None)
    assert found.passes(lower_bound(6, 8))
    assert not found.passes(lower_bound(6, 8) + 1e-9)
