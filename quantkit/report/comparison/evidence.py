"""Every pair of artifacts, and the evidence that the two differ.

Three kinds of evidence have a vote, because each measures what a model can do: hits of the
retrieval check's main task (McNemar), the log-probability of the right answers (permutation), and
the log-probability of a text's tokens (permutation of chunks). Divergence from the base has no
vote: any quantization moves it.

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

from quantkit.report.comparison.measured import Measured, paired_answers
from quantkit.report.comparison.paired_tests import (
    CONFIDENCE,
    RESAMPLES,
    PairedTest,
    holm,
    mcnemar,
    permutation,
)

LEVEL = 0.05
RESAMPLES_A_TEST = 200
"""For each test, so that its corrected p can still be five times below `LEVEL`."""

Kind = Literal["hits", "log-probability", "text"]
KINDS: tuple[Kind, ...] = ("hits", "log-probability", "text")


@dataclass(frozen=True)
class Evidence:
    """One test of a pair.

    Attributes:
        corrected_p: of `test.p`, by Holm over all tests of the comparison.
        best_corrected_p: `test.best_p` times the number of tests: the corrected p of this test if
            it alone had the clearest possible result.
    """

    test: PairedTest
    corrected_p: float = 1.0
    best_corrected_p: float = 1.0

    @property
    def vote(self) -> int:
        """1: the second is better; -1: it is worse; 0: no evidence of either."""
        if self.corrected_p > LEVEL or self.test.difference == 0:
            return 0
        return 1 if self.test.difference > 0 else -1

    @property
    def could_tell(self) -> bool:
        """Whether there are enough units to detect that the second lost everything."""
        return self.best_corrected_p <= LEVEL


@dataclass(frozen=True)
class Pair:
    """Two artifacts by name: the reference first, otherwise the larger.

    Attributes:
        evidence: by kind, as far as it was measured; a positive difference: the second is better.
            Of hits a share, of answers nats an answer, of the text nats a token.
        nearness: of the base: test of the divergences, nats; negative: the second is nearer.
            Corrected over all pairs; None where one is the base.
    """

    first: str
    second: str
    evidence: dict[Kind, Evidence]
    nearness: Evidence | None

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
        tests = [found.test for found in self.evidence.values()]
        return not any(test.gained or test.lost for test in tests)


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
    tests = [(i, kind) for i, pair in enumerate(pairs) for kind in pair.evidence]
    found = [pairs[i].evidence[kind].test for i, kind in tests]
    corrected = _corrected(found)
    nearness = iter(_corrected([p.nearness.test for p in pairs if p.nearness is not None]))
    by_pair: list[dict[Kind, Evidence]] = [{} for _ in pairs]
    for (i, kind), evidence in zip(tests, corrected, strict=True):
        by_pair[i][kind] = evidence
    return tuple(
        replace(
            pair,
            evidence=by_pair[i],
            nearness=None if pair.nearness is None else next(nearness),
        )
        for i, pair in enumerate(pairs)
    )


def _corrected(tests: Sequence[PairedTest]) -> list[Evidence]:
    corrected = holm([test.p for test in tests])
    return [
        Evidence(test, p, min(1.0, len(tests) * test.best_p))
        for test, p in zip(tests, corrected, strict=True)
    ]


def _pair(first: Measured, second: Measured, resamples: int, confidence: float) -> Pair:
    evidence: dict[Kind, Evidence] = {}
    answers = paired_answers(first, second)
    if answers:
        hits = mcnemar([a.hit for a, _ in answers], [b.hit for _, b in answers])
        evidence["hits"] = Evidence(hits)
    known = [
        (a.log_probability, b.log_probability)
        for a, b in answers
        if a.log_probability is not None and b.log_probability is not None
    ]
    if known:
        mine, others = np.array(known, np.float64).T
        evidence["log-probability"] = Evidence(permutation(mine, others, resamples, confidence))
    text = permutation(
        first.chunk_means(-first.positions.nll),
        second.chunk_means(-second.positions.nll),
        resamples,
        confidence,
    )
    evidence["text"] = Evidence(text)
    nearness = None
    if not (first.is_base or second.is_base):
        mine, others = (one.chunk_means(one.positions.kld) for one in (first, second))
        nearness = Evidence(permutation(mine, others, resamples, confidence))
    return Pair(first.name, second.name, evidence, nearness)
