"""Artifacts in the order of their quality, with what the order rests on.

"Cannot be told apart" is not transitive: A ≈ B and B ≈ C do not make A ≈ C. So the line shows
neighbours only, and every pair that it would mislead about is told beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.report.comparison.evidence import Kind, Pair
from quantkit.report.comparison.measured import Measured

Sign = Literal[">", "≈", "<", "≷"]


@dataclass(frozen=True)
class Relation:
    """What is known of two artifacts: the left one is better (>), worse (<), or both, each by
    other evidence (≷); ≈: nothing tells them apart.

    Attributes:
        kinds: of the evidence that speaks for the sign.
    """

    left: str
    sign: Sign
    right: str
    kinds: tuple[Kind, ...]

    @property
    def text(self) -> str:
        """`Q4 > Q3 (hits, text)`."""
        words = f"{self.left} {self.sign} {self.right}"
        return f"{words} ({', '.join(self.kinds)})" if self.kinds else words


@dataclass(frozen=True)
class Ordering:
    """Attributes:
    names: the best first.
    neighbours: one relation fewer than names.
    beside: pairs that are no neighbours and have another relation than the line suggests.
    """

    names: tuple[str, ...]
    neighbours: tuple[Relation, ...]
    beside: tuple[Relation, ...]

    @property
    def text(self) -> str:
        """`Q6 ≈ Q4 > Q3`."""
        return self.names[0] + "".join(f" {r.sign} {r.right}" for r in self.neighbours)


def relation(pairs: Sequence[Pair], left: str, right: str) -> Relation:
    """What the evidence of a pair says, whichever of the two is first in it."""
    pair = next(p for p in pairs if {p.first, p.second} == {left, right})
    worse, better = pair.votes(-1), pair.votes(1)  # the second, of the first
    if left != pair.first:
        worse, better = better, worse
    sign: Sign = "≷" if worse and better else ">" if worse else "<" if better else "≈"
    return Relation(left, sign, right, worse + better)


def order(artifacts: Sequence[Measured], pairs: Sequence[Pair]) -> Ordering:
    """By how many others each is better than, less those that it is worse than; where that is
    equal by the mean log-probability of right answers, then hits, then of the text's tokens."""
    names = [artifact.name for artifact in artifacts]
    wins = dict.fromkeys(names, 0)
    for pair in pairs:
        found = relation(pairs, pair.first, pair.second)
        wins[pair.first] += {">": 1, "<": -1}.get(found.sign, 0)
        wins[pair.second] -= {">": 1, "<": -1}.get(found.sign, 0)

    def quality(artifact: Measured) -> tuple[float, ...]:
        known = artifact.log_probability
        text = -float(artifact.positions.nll.mean())
        return wins[artifact.name], 0.0 if known is None else known, artifact.hits or 0, text

    ranked = [artifact.name for artifact in sorted(artifacts, key=quality, reverse=True)]
    neighbours = [relation(pairs, a, b) for a, b in itertools.pairwise(ranked)]
    beside = []
    for i, left in enumerate(ranked):
        for j in range(i + 2, len(ranked)):
            between = {found.sign for found in neighbours[i:j]}
            suggested = ">" if between <= {">", "≈"} and ">" in between else "≈"
            found = relation(pairs, left, ranked[j])
            if found.sign != suggested:
                beside.append(found)
    return Ordering(tuple(ranked), tuple(neighbours), tuple(beside))
