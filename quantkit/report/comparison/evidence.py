"""Every pair of artifacts, and the evidence that the two differ.

Five kinds of evidence have a vote. Of a text's tokens: the divergence from the base, whether the
most likely token is the base's, and the log-probability of the next token, each by a t test of the
chunks' means. Of the retrieval check's main task: hits (McNemar), and the log-probability of the
right answers (permutation).

All votes of all pairs share one error rate (Holm): at `LEVEL`, a comparison of equal artifacts
calls any two of them different with a chance of 5 %. Questions and chunks count as independent;
what the questions of one haystack have in common is not modelled.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from quantkit.report.comparison.measured import Measured, paired_answers
from quantkit.study.kld_statistics import standard_error

LEVEL = 0.05
RESAMPLES_A_TEST = 200
"""For each test, so that its corrected p can still be five times below `LEVEL`."""

Kind = Literal["KLD", "same top", "hits", "log-probability", "text"]
KINDS: tuple[Kind, ...] = ("KLD", "same top", "hits", "log-probability", "text")
OF_TEXT: frozenset[Kind] = frozenset({"KLD", "same top", "text"})
"""Those whose units are chunks."""


@dataclass(frozen=True)
class Evidence:
    """One test: how the second of two artifacts differs from the first on the same units.

    Attributes:
        units: pairs of values.
        gained, lost: units where the second's value is higher, lower.
        difference: mean of the second's values less the first's.
        low, high: t interval of it; None of hits, and of a single unit.
        p: two-sided probability of a difference at least as large, if there is none.
        can_lose: units that the second can lose: all, or of hits those that the first has.
        best_p: `p` if the second lost all of these and gained nothing; of chunks, if the mean loss
            were `CLEAR` standard deviations of their means.
        less_is_better: of the divergence.
        corrected_p: of `p`, by Holm over all tests of the comparison.
        best_corrected_p: `best_p` times the number of tests: the corrected p of this test if it
            alone had the clearest possible result.
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
    less_is_better: bool = False
    corrected_p: float = 1.0
    best_corrected_p: float = 1.0

    @property
    def vote(self) -> int:
        """1: the second is better; -1: it is worse; 0: no evidence of either."""
        if self.corrected_p > LEVEL or self.difference == 0:
            return 0
        return 1 if (self.difference > 0) != self.less_is_better else -1

    @property
    def could_tell(self) -> bool:
        """Whether there are enough units to detect that the second lost everything."""
        return self.best_corrected_p <= LEVEL


@dataclass(frozen=True)
class Pair:
    """Two artifacts by name: the reference first, otherwise the larger.

    Attributes:
        evidence: by kind, as far as it was measured; a positive difference: the second is better,
            of KLD that it is worse. Of hits and of the same top token a share, of answers nats an
            answer, of KLD and of the text nats a token.
    """

    first: str
    second: str
    evidence: dict[Kind, Evidence]

    def votes(self, direction: int) -> tuple[Kind, ...]:
        """The kinds that call the second better (1) or worse (-1)."""
        return tuple(kind for kind, found in self.evidence.items() if found.vote == direction)

    @property
    def unable(self) -> tuple[Kind, ...]:
        """The kinds with too few units to detect any loss."""
        return tuple(kind for kind, found in self.evidence.items() if not found.could_tell)

    @property
    def without_loss(self) -> bool:
        """Whether no kind calls the second worse, although each could have detected it."""
        return not self.unable and not self.votes(-1)

    @property
    def identical(self) -> bool:
        """Whether no unit of any test differs."""
        return not any(found.gained or found.lost for found in self.evidence.values())


def all_pairs(artifacts: Sequence[Measured]) -> tuple[Pair, ...]:
    """All pairs of `artifacts`, which have the reference first.

    Intervals hold for all comparisons of one artifact together (Bonferroni).

    Raises:
        InputError: their answers are not to the same questions.
    """
    combinations = list(itertools.combinations(artifacts, 2))
    resamples = max(RESAMPLES, RESAMPLES_A_TEST * len(KINDS) * len(combinations))
    confidence = 1 - (1 - CONFIDENCE) / max(1, len(artifacts) - 1)
    pairs = [_pair(first, second, resamples, confidence) for first, second in combinations]
    corrected = iter(_corrected([e for pair in pairs for e in pair.evidence.values()]))
    return tuple(
        replace(pair, evidence={kind: next(corrected) for kind in pair.evidence}) for pair in pairs
    )


def _corrected(tests: Sequence[Evidence]) -> list[Evidence]:
    return [
        replace(test, corrected_p=p, best_corrected_p=min(1.0, len(tests) * test.best_p))
        for test, p in zip(tests, holm([test.p for test in tests]), strict=True)
    ]


def _pair(first: Measured, second: Measured, resamples: int, confidence: float) -> Pair:
    mine, others, chunks = first.positions, second.positions, first.chunks
    top, other_top = (one.same_top.astype(np.float64) for one in (mine, others))
    evidence: dict[Kind, Evidence] = {
        "KLD": chunk_means(mine.kld, others.kld, chunks, confidence, less_is_better=True),
        "same top": chunk_means(top, other_top, chunks, confidence),
    }
    answers = paired_answers(first, second)
    if answers:
        evidence["hits"] = mcnemar([a.hit for a, _ in answers], [b.hit for _, b in answers])
    known = [
        (a.log_probability, b.log_probability)
        for a, b in answers
        if a.log_probability is not None and b.log_probability is not None
    ]
    if known:
        first_known, second_known = np.array(known, np.float64).T
        found = permutation(first_known, second_known, resamples, confidence)
        evidence["log-probability"] = found
    evidence["text"] = chunk_means(-mine.nll, -others.nll, chunks, confidence)
    return Pair(first.name, second.name, evidence)


CONFIDENCE = 0.95
"""Of the intervals of a mean difference, two-sided."""
RESAMPLES = 9_999
"""Random sign changes that are tried; more where many tests share one error rate."""
SEED = 20_240_406
"""Of the random sign changes: the same values give the same p."""

CLEAR = 4.0
"""Standard deviations of the chunks' means that a clear loss has: the KLDs of the demo model's Q8_0
and Q5_0 are 4 apart on 8 chunks, those of Q5_0 and Q4_0 are 10."""
ROUNDING_NATS = 1e-7
"""Differences of a chunk's mean that say nothing: `formats/logits_file.py` stores 16 bits."""

BATCH_VALUES = 1 << 20
"""Most values of resampled differences in memory at a time."""

F64 = NDArray[np.float64]


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> Evidence:
    """Exact McNemar test of hits: whether those that only one has are equally many.

    McNemar, "Note on the sampling error of the difference between correlated proportions",
    Psychometrika 12 (1947); here with the binomial distribution itself in place of its limit.
    """
    from scipy.stats import binomtest

    gained = sum(b and not a for a, b in zip(first, second, strict=True))
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    units, can_lose = len(first), sum(first)
    p = binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    difference, best = (gained - lost) / units, _best(can_lose)
    return Evidence(units, gained, lost, difference, None, None, float(p), can_lose, best)


def chunk_means(
    first: F64,
    second: F64,
    chunks: int,
    confidence: float = CONFIDENCE,
    *,
    less_is_better: bool = False,
) -> Evidence:
    """Paired t test of two means over a text's positions, by the means of its `chunks`.

    Positions of a chunk may depend on each other in any way. Means of different chunks are taken as
    independent and normal, of any variances: the test is then conservative at every level below
    8 % (Ibragimov and Müller, "t-statistic based correlation and heterogeneity robust inference",
    Journal of Business & Economic Statistics 28, 2010). The standard error is no smaller than that
    of independent positions, because few chunks may agree by chance: ADR 18.

    Args:
        first, second: one value a position, those of a chunk together.
        confidence: of the interval, two-sided.
    """
    from scipy.special import stdtr, stdtrit

    differences = second - first
    means = differences.reshape(chunks, -1).mean(axis=1)
    means[np.abs(means) < ROUNDING_NATS] = 0.0
    mean = float(means.mean())
    gained, lost = int((means > 0).sum()), int((means < 0).sum())
    if chunks == 1:  # its sign is as likely as the other
        return Evidence(1, gained, lost, mean, None, None, 1.0, 1, 1.0, less_is_better)
    error = max(standard_error(means), standard_error(differences))
    t = abs(mean) / error if error else np.inf if mean else 0.0
    free = chunks - 1
    reach = float(stdtrit(free, (1 + confidence) / 2)) * error
    p, best = (float(2 * stdtr(free, -one)) for one in (t, CLEAR * np.sqrt(chunks)))
    return Evidence(
        chunks, gained, lost, mean, mean - reach, mean + reach, p, chunks, best, less_is_better
    )


def permutation(
    first: F64, second: F64, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Evidence:
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
        return Evidence(1, gained, lost, mean, None, None, 1.0, 1, 1.0)
    tested = permutation_test(
        (differences,),
        np.mean,
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
    return Evidence(units, gained, lost, mean, mean - reach, mean + reach, p, units, best)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's corrected p-values, in the order given.

    Where all below a level are called differences, the chance that any of them is none is at most
    that level: Holm, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6 (1979). The smallest is multiplied by their number, the next by one
    less, and so on; none gets less than one before it, or more than 1.
    """
    p = np.array(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.minimum(1.0, np.arange(len(p), 0, -1) * p[order])
    corrected = np.empty_like(p)
    corrected[order] = np.maximum.accumulate(raised)
    return [float(one) for one in corrected]


def p_text(p: float) -> str:
    """`p = 1.00`, `p = 0.41`, `p = 0.050`, `p = 0.0040`, `p < 0.0001`."""
    if p < 1e-4:
        return "p < 0.0001"
    digits = 2 if p >= 0.1 else 3 if p >= 0.01 else 4
    return f"p = {p:.{digits}f}"


def _best(units: int) -> float:
    """Two-sided p of an exact test when all `units` go one way."""
    return min(1.0, 2.0 ** (1 - units))
