"""Artifacts in the order of their quality, and the evidence for that order.

"Not distinguishable" is not transitive: A ≈ B and B ≈ C do not imply A ≈ C. So the line relates
neighbours only, and pairs with another relation than the line suggests are listed beside it.
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
    """How two artifacts relate: the left one is better (>), worse (<), both by different evidence
    (≷), or not distinguishable (≈).

    Attributes:
        kinds: of the evidence for the sign.
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
    """The order of all artifacts.

    Attributes:
        names: the best first.
        neighbours: the relation of each name to the next.
        beside: pairs of others whose relation is not the one that the line suggests.
    """

    names: tuple[str, ...]
    neighbours: tuple[Relation, ...]
    beside: tuple[Relation, ...]

    @property
    def text(self) -> str:
        """`Q6 ≈ Q4 > Q3`."""
        return self.names[0] + "".join(f" {r.sign} {r.right}" for r in self.neighbours)


def relation(pairs: Sequence[Pair], left: str, right: str) -> Relation:
    """The relation of `left` to `right`, in whichever order the pair has them."""
    pair = next(p for p in pairs if {p.first, p.second} == {left, right})
    worse, better = pair.votes(-1), pair.votes(1)  # the second, of the first
    if left != pair.first:
        worse, better = better, worse
    sign: Sign = "≷" if worse and better else ">" if worse else "<" if better else "≈"
    return Relation(left, sign, right, worse + better)


def order(artifacts: Sequence[Measured], pairs: Sequence[Pair]) -> Ordering:
    """Rank by the number of artifacts that each is better than, minus those that it is worse than.

    Ties are broken by the mean log-probability of right answers, then by hits, then by the mean
    log-probability of the text's tokens.
    """
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
