"""Paired tests against worked examples of the literature, and what must hold for any values."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_rel

from quantkit.report.comparison.evidence import chunk_means, holm, mcnemar, p_text, permutation

# Darwin's maize, heights of crossed less self-fertilized plants in eighths of an inch, with which
# Fisher introduced the permutation test (The Design of Experiments, 1935, section 21)
MAIZE = np.array([49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48], np.float64)


def hits(both: int, first: int, second: int, neither: int) -> tuple[list[bool], list[bool]]:
    """Answers of two by how many only one, both or neither hit."""
    ones = [True] * (both + first) + [False] * (second + neither)
    others = [True] * both + [False] * first + [True] * second + [False] * neither
    return ones, others


def test_mcnemar() -> None:
    # approval ratings in Agresti, Categorical Data Analysis (2002), table 10.1
    found = mcnemar(*hits(794, 150, 86, 570))
    assert (found.units, found.lost, found.gained) == (1600, 150, 86)
    assert found.p == pytest.approx(3.716e-05, rel=1e-3)
    assert found.difference == -64 / 1600
    # by hand: 2 · (C(8,0) + C(8,1)) / 2^8
    assert mcnemar(*hits(30, 7, 1, 2)).p == pytest.approx(2 * 9 / 256)
    same = mcnemar(*hits(30, 0, 0, 10))
    assert (same.p, same.difference, same.gained, same.lost) == (1.0, 0.0, 0, 0)
    assert mcnemar(*hits(0, 4, 0, 0)).p == mcnemar(*hits(0, 4, 0, 0)).best_p == 2 / 16


def test_permutation_is_fishers() -> None:
    found = permutation(np.zeros(15), MAIZE, resamples=2**15)
    assert found.p == pytest.approx(2 * 863 / 2**15)  # Fisher's count, in each tail
    assert found.difference == pytest.approx(20.9333, abs=1e-4)
    interval = ttest_rel(MAIZE, np.zeros(15)).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert (found.gained, found.lost, found.best_p) == (13, 2, 2 / 2**15)
    by_chance = permutation(np.zeros(15), MAIZE, resamples=9_999)
    assert by_chance.p == pytest.approx(2 * 863 / 2**15, abs=0.009)  # four standard errors
    assert by_chance.p == permutation(np.zeros(15), MAIZE, resamples=9_999).p
    assert by_chance.best_p == 2 / 10_000


def test_a_single_unit_says_nothing() -> None:
    found = permutation(np.zeros(1), np.ones(1))
    assert (found.units, found.p, found.best_p, found.low) == (1, 1.0, 1.0, None)


def test_chunk_means() -> None:
    found = chunk_means(np.zeros(15), MAIZE, 15)  # Fisher's own t of it is 2.148
    assert found.p == pytest.approx(ttest_rel(MAIZE, np.zeros(15)).pvalue)
    assert (found.units, found.gained, found.lost) == (15, 13, 2)
    # a chunk's positions count as one unit, whatever is copied in it
    again = chunk_means(np.zeros(60), np.repeat(MAIZE, 4), 15)
    assert (again.p, again.low) == (pytest.approx(found.p), pytest.approx(found.low))
    # counts that agree by chance in two chunks are no certainty
    flips = np.zeros(510)
    flips[[3, 300]] = 1
    assert chunk_means(np.zeros(510), flips, 2).p > 0.3
    assert chunk_means(np.zeros(4), np.ones(4), 1).p == 1
    assert chunk_means(np.zeros(4), np.full(4, 5e-8), 2).p == 1
    less = chunk_means(np.zeros(800), np.ones(800), 8, less_is_better=True)
    assert (less.difference, less.p) == (1, 0)


def test_chunk_means_of_equal_artifacts_are_rarely_told_apart() -> None:
    """ADR 18 in small: chunks that are harder for one artifact, and tests that know and do not."""
    random = np.random.default_rng(5)
    alarms = {8: 0, 8 * 15: 0}
    for _ in range(300):
        hard = random.lognormal(0, 0.4, (2, 8, 1))
        one, other = (hard * random.lognormal(0, 0.8, (2, 8, 255))).reshape(2, -1)
        for units in alarms:
            alarms[units] += chunk_means(one, other, units).p <= 0.05
    assert alarms[8] <= 30  # of 15 expected at most; 31 have a chance of 1 in 10,000
    assert alarms[8 * 15] > 100


@given(
    st.lists(
        st.tuples(st.floats(-50, 0, width=32), st.floats(-50, 0, width=32)),
        min_size=1,
        max_size=12,
    )
)
def test_swapping_turns_signs_and_keeps_p(pairs: list[tuple[float, float]]) -> None:
    first, second = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    one, other = permutation(first, second), permutation(second, first)
    assert 0 < one.p <= 1
    assert one.p == pytest.approx(other.p)
    assert one.difference == -other.difference
    assert (one.gained, one.lost) == (other.lost, other.gained)
    if one.low is not None and one.high is not None:
        assert one.low <= one.difference <= one.high
    hit = mcnemar(list(first > -9), list(second > -9))
    turned = mcnemar(list(second > -9), list(first > -9))
    assert 0 < hit.p == turned.p <= 1
    assert hit.difference == -turned.difference


def test_holm() -> None:
    # worked in textbooks: 4 · 0.005, 3 · 0.01, 2 · 0.03, and 0.04, which is raised to the 0.06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02]) == [0.02]
    assert holm([]) == []
    assert holm([0.6, 0.5]) == [1.0, 1.0]


@given(st.lists(st.floats(0, 1), max_size=20))
def test_holm_keeps_the_order_and_only_raises(p_values: list[float]) -> None:
    corrected = holm(p_values)
    for p, c in zip(p_values, corrected, strict=True):
        assert p <= c <= min(1.0, len(p_values) * p)  # never more than Bonferroni's
    by_p = [c for _, c in sorted(zip(p_values, corrected, strict=True))]
    assert by_p == sorted(by_p)


@pytest.mark.parametrize(
    ("p", "words"),
    [
        (1.0, "p = 1.00"), (0.411, "p = 0.41"),
        (0.0504, "p = 0.050"), (0.0516, "p = 0.052"), (0.01, "p = 0.010"), (0.0041, "p = 0.0041"),
        (0.0001, "p = 0.0001"), (0.00004, "p < 0.0001"),
    ],
)  # fmt: skip
def test_words_of_p(p: float, words: str) -> None:
    assert p_text(p) == words
