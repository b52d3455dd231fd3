"""What a number of hits proves: exact binomial bounds, and the needles that a gate needs."""

from __future__ import annotations

import bisect

CONFIDENCE = 0.95


def lower_bound(hits: int, trials: int, confidence: float = CONFIDENCE) -> float:
    """One-sided exact (Clopper–Pearson) lower bound of the hit rate."""
    from scipy.stats import binomtest

    if trials == 0:
        return 0.0
    interval = binomtest(hits, trials, alternative="greater").proportion_ci(confidence, "exact")
    return float(interval.low)


def needed_hits(trials: int, bound: float, confidence: float = CONFIDENCE) -> int | None:
    """The fewest hits of `trials` whose lower bound reaches `bound`; None when even all do not."""
    if lower_bound(trials, trials, confidence) < bound:
        return None
    hits = range(trials + 1)
    return bisect.bisect_left(hits, bound, key=lambda h: lower_bound(h, trials, confidence))
