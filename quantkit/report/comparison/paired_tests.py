"""Tests of two artifacts on the same units: questions, or chunks of text.

Both artifacts got the same prompts and the same text, so the difficulty of
a unit is the same for both and drops out of the differences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Of the intervals of a mean difference, two-sided."""
RESAMPLES = 9_999
"""Random sign changes that are tried; more where many tests share one error rate."""
SEED = 20_240_406
"""Of the random sign changes: the same values give the same p."""

BATCH_VALUES = 1 << 20
"""Most values of resampled differences in memory at a time."""

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class PairedTest:
    """How the second of two artifacts differs from the first on the same units.

    Attributes:
        units: pairs of values.
        gained, lost: units where the second's value is higher, lower.
        difference: mean of the second's values less the first's.
        low, high: t interval of it; None of hits, and of a single unit.
        p: two-sided probability of a difference at least as large, if there is none.
        can_lose: units that the second can lose: all, or of hits those that the first has.
        best_p: `p` if the second lost all of these and gained nothing.
    """

    units: int
    gained: int
    lost: int
    difference: float
    low: float | None
    high: float | None
    p: float
    can_lose: int
    best_p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> PairedTest:
    """Exact McNemar test of hits: whether those that only one has are equally many.

    McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 12 (1947); here with the binomial distribution itself in place of its limit.
    """
    from scipy.stats import binomtest

    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    units = len(first)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    difference = (gained - lost) / units
    can_lose = sum(first)
    best = _best(can_lose)
    return PairedTest(units, gained, lost, difference, None, None, float(p), can_lose, best)


def permutation(
    first: F64, second: F64, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> PairedTest:
    """Paired permutation test of two means: signs of differences are as likely as their opposites.

    Exact where there are no more than `resamples` ways to change signs, 2^units; else by as many
    random ones, and p is then never below 2 / (resamples + 1).

    Args:
        confidence: of the interval, two-sided.
    """
    from scipy.special import stdtrit
    from scipy.stats import permutation_test

    differences = second - first
    units = len(differences)
    mean = float(differences.mean())
    gained, lost = int((differences > 0).sum()), int((differences < 0).sum())
    if units == 1:  # its sign is as likely as the other
        return PairedTest(1, gained, lost, mean, None, None, 1.0, 1, 1.0)
    tested = permutation_test(
        (differences,),
        _mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, BATCH_VALUES // units),
        rng=np.random.default_rng(SEED),
    )
    error = float(differences.std(ddof=1) / np.sqrt(units))
    reach = float(stdtrit(units - 1, (1 + confidence) / 2)) * error
    best = _best(units) if 2**units <= resamples else 2 / (resamples + 1)
    p = float(tested.pvalue)
    return PairedTest(units, gained, lost, mean, mean - reach, mean + reach, p, units, best)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given.

    Where all below a level are called differences, the chance that any of them is none is at most
    that level: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979). The smallest is multiplied by their number, the next by one
    less, and so on; none gets less than one before it, or more than 1.
    """
    corrected = [0.0] * len(p_values)
    highest = 0.0
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = highest
    return corrected


def p_text(p: float) -> str:
    """`p = 1.00`, `p = 0.41`, `p = 0.050`, `p = 0.0040`, `p < 0.0001`."""
    if p < 1e-4:
        return "p < 0.0001"
    digits = 2 if p >= 0.1 else 3 if p >= 0.01 else 4
    return f"p = {p:.{digits}f}"


def _mean(values: F64, axis: int) -> F64:
    return np.asarray(values.mean(axis=axis))


def _best(units: int) -> float:
    """Two-sided p of an exact test when all `units` go one way."""
    return min(1.0, 2.0 ** (1 - units))
