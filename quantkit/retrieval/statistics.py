"""One-sided bounds of hit rates, and the trials that a gate needs.

Exact bounds (Clopper–Pearson) count every question as an independent trial; clustered ones
(Korn–Graubard) allow for haystacks of different difficulty.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.recipe import CLUSTERS

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Bounds:
    """One-sided bounds of a hit rate, each with the full confidence."""

    lower: float
    upper: float


def hit_rate_bounds(
    counts: Sequence[tuple[int, int]], *, clustered: bool = False, confidence: float = CONFIDENCE
) -> Bounds:
    """Bounds of the hit rate behind `counts`, (hits, trials) by seed.

    Args:
        clustered: use `effective_trials`; otherwise all trials count alike, whatever their seed.

    Raises:
        ValueError: clustered bounds of fewer than `CLUSTERS` seeds with trials.
    """
    hits, trials = sum(h for h, _ in counts), sum(n for _, n in counts)
    if trials == 0:
        return Bounds(0.0, 1.0)
    size = effective_trials(counts, confidence) if clustered else float(trials)
    return Bounds(*_beta_bounds(hits / trials * size if clustered else hits, size, confidence))


def effective_trials(counts: Sequence[tuple[int, int]], confidence: float = CONFIDENCE) -> float:
    """The number of independent trials with the information of `counts`, (hits, trials) by seed.

    Korn and Graubard, "Confidence intervals for proportions with small expected number of positive
    counts estimated from survey data", Survey Methodology 24 (1998): n over the design effect, the
    variance of the rate as it follows from the spread between seeds over that of n independent
    trials, times (t(n-1) / t(seeds-1))², because a few seeds know that spread only roughly.

    As the National Center for Health Statistics does it (Parker et al., "Data Presentation
    Standards for Proportions", Vital and Health Statistics 2:175, 2017), the result is never more
    than n, and is n where the rate is 0 or 1 and nothing can be said about the spread.

    Raises:
        ValueError: fewer than `CLUSTERS` seeds have trials.
    """
    from scipy.special import stdtrit

    asked = [(hits, trials) for hits, trials in counts if trials]
    if len(asked) < CLUSTERS:
        raise ValueError(f"clustered bounds take {CLUSTERS} seeds or more, not {len(asked)}")
    hits, trials = sum(h for h, _ in asked), sum(n for _, n in asked)
    rate = hits / trials
    if hits in (0, trials):
        return float(trials)
    # of a ratio, hits over trials, between clusters that are drawn with replacement
    seeds = len(asked)
    spread = sum((h - rate * n) ** 2 for h, n in asked) * seeds / (seeds - 1)
    if spread == 0:
        return float(trials)
    size = rate * (1 - rate) * trials**2 / spread
    few = stdtrit(trials - 1, confidence) / stdtrit(seeds - 1, confidence)
    return min(float(size * few**2), float(trials))


def lower_bound(hits: float, trials: float, confidence: float = CONFIDENCE) -> float:
    """One-sided exact (Clopper–Pearson) lower bound of the hit rate."""
    return _beta_bounds(hits, trials, confidence)[0] if trials else 0.0


def needed_hits(trials: int, bound: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest hits of `trials` whose lower bound reaches `bound`; None when even all do not."""
    if lower_bound(trials, trials, confidence) < bound:
        return None
    hits = range(trials + 1)
    return bisect.bisect_left(hits, bound, key=lambda h: lower_bound(h, trials, confidence))


def needed_trials(bound: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest trials that can prove `bound`, all of them hits; None: no number can."""
    if bound >= 1:
        return None
    if bound <= 0:
        return 0
    # all of n hits prove (1 - confidence)^(1/n); the logarithms may be a rounding away from it
    trials = max(1, math.ceil(math.log(1 - confidence) / math.log(bound)) - 1)
    while lower_bound(trials, trials, confidence) < bound:
        trials += 1
    return trials


def _beta_bounds(hits: float, trials: float, confidence: float) -> tuple[float, float]:
    """Clopper–Pearson by quantiles of the beta distribution, which also take fractions."""
    from scipy.special import betaincinv

    lower = betaincinv(hits, trials - hits + 1, 1 - confidence) if hits > 0 else 0.0
    upper = betaincinv(hits + 1, trials - hits, confidence) if hits < trials else 1.0
    return float(lower), float(upper)
