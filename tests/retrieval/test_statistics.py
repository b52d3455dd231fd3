"""Bounds of hit rates against published values, and against the distributions themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from scipy.stats import t as student

from quantkit.retrieval.statistics import (
    Bounds,
    effective_trials,
    hit_rate_bounds,
    lower_bound,
    needed_hits,
    needed_trials,
)

COUNTS = st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def test_published_bounds() -> None:
    # Clopper and Pearson's 95 % interval of 2 in 10, which has 97.5 % on each side
    assert hit_rate_bounds([(2, 10)], confidence=0.975) == Bounds(
        pytest.approx(0.02521, abs=5e-6), pytest.approx(0.55610, abs=5e-6)
    )
    # nothing of n: the rule of three, exactly 1 - 0.05^(1/n)
    assert hit_rate_bounds([(0, 100)]) == Bounds(0.0, pytest.approx(1 - 0.05**0.01))
    assert hit_rate_bounds([(3, 3)]) == Bounds(pytest.approx(0.05 ** (1 / 3)), 1.0)
    assert hit_rate_bounds([]) == hit_rate_bounds([(0, 0)], clustered=False) == Bounds(0.0, 1.0)


def test_what_a_gate_needs() -> None:
    # "at least 95 % with one-sided 95 % confidence" takes 59 of 59, 92 of 93 or 122 of 124
    assert [needed_hits(n, 0.95) for n in (58, 59, 93, 124)] == [None, 59, 92, 122]
    assert lower_bound(92, 93) >= 0.95 > lower_bound(91, 92)
    assert [needed_trials(bound) for bound in (0.95, 0.9, 0.99, 0.5)] == [59, 29, 299, 5]
    assert needed_trials(1.0) is None
    assert needed_trials(0.0) == 0
    assert lower_bound(0, 0) == lower_bound(0, 9) == 0.0


@given(st.integers(1, 400))
def test_needed_trials_are_the_fewest(trials: int) -> None:
    proven = lower_bound(trials, trials)
    assert needed_trials(proven) == trials
    assert needed_trials(proven + 1e-9) == trials + 1


@given(COUNTS)
def test_bounds_are_the_exact_ones(case: tuple[int, int]) -> None:
    hits, trials = case
    bounds = hit_rate_bounds([(hits, trials)])
    low = binomtest(hits, trials, alternative="greater").proportion_ci(0.95, "exact").low
    high = binomtest(hits, trials, alternative="less").proportion_ci(0.95, "exact").high
    assert bounds.lower == pytest.approx(low, abs=1e-9)
    assert bounds.upper == pytest.approx(high, abs=1e-9)
    assert bounds.lower <= hits / trials <= bounds.upper
    if hits:  # at the bound, so many hits or more have a chance of 5 %
        assert binom.sf(hits - 1, trials, bounds.lower) == pytest.approx(0.05)
    if hits < trials:
        assert bounds.lower < lower_bound(hits + 1, trials)


def test_seeds_together_are_one_sample_unless_clustered() -> None:
    counts = [(18, 20), (20, 20), (16, 20)]
    assert hit_rate_bounds(counts) == hit_rate_bounds([(54, 60)])
    # the rate is 0.9 and the seeds are 0, 2 and −2 hits off: the ratio's variance is
    # 3/2 · (0 + 4 + 4) / 60² = 1/300, of independent trials 0.09 / 60; so 60 count as 27 before
    # the few seeds, whose t is 2.9200 and not 1.6711, take two thirds of that
    few = student.ppf(0.95, 59) / student.ppf(0.95, 2)
    assert (student.ppf(0.95, 59), student.ppf(0.95, 2)) == pytest.approx(
        (1.6711, 2.9200), abs=1e-4
    )
    assert effective_trials(counts) == pytest.approx(27 * few**2)
    clustered = hit_rate_bounds(counts, clustered=True)
    assert clustered.lower == pytest.approx(lower_bound(0.9 * 27 * few**2, 27 * few**2))
    assert clustered.lower < hit_rate_bounds(counts).lower
    assert clustered.upper > hit_rate_bounds(counts).upper


def test_seeds_that_say_nothing_of_their_spread_count_in_full() -> None:
    # as the National Center for Health Statistics does it
    for counts in ([(20, 20)] * 3, [(0, 20)] * 3, [(15, 20)] * 3):
        assert effective_trials(counts) == 60
        assert hit_rate_bounds(counts, clustered=True) == hit_rate_bounds(counts)
    # clusters that are more alike than chance gain nothing
    assert effective_trials([(10, 20)] * 29 + [(11, 20)]) == 600
    with pytest.raises(ValueError, match="3 seeds or more, not 2"):
        hit_rate_bounds([(3, 4), (4, 4), (0, 0)], clustered=True)


@given(st.lists(COUNTS, min_size=3, max_size=8))
def test_clustered_bounds_hold_the_rate_and_are_never_tighter(
    counts: list[tuple[int, int]],
) -> None:
    hits, trials = sum(h for h, _ in counts), sum(n for _, n in counts)
    clustered, exact = hit_rate_bounds(counts, clustered=True), hit_rate_bounds(counts)
    assert 0 < effective_trials(counts) <= trials
    assert 0 <= clustered.lower <= hits / trials <= clustered.upper <= 1
    assert clustered.lower <= exact.lower + 1e-9
    assert clustered.upper >= exact.upper - 1e-9
