"""A whole comparison: the artifacts, and everything that follows from what was measured."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.report.comparison.evidence import OF_TEXT, Evidence, Kind, Pair, all_pairs, p_text
from quantkit.report.comparison.measured import Measured


@dataclass(frozen=True)
class Conditions:
    """The conditions that all artifacts were measured under.

    Attributes:
        base: name of what the divergence is measured from.
        text: name of the text of the divergence, `chunks` of `chunk_tokens`, of which `tokens`
            count.
        base_perplexity: of that text.
        context_tokens: lengths of the retrieval check, shortest first; none: it was left out.
        needles: asked at each length, of each of `seeds`.
        haystack: name of its text.
    """

    base: str
    text: str
    chunks: int
    chunk_tokens: int
    tokens: int
    base_perplexity: float
    context_tokens: tuple[int, ...]
    needles: int
    seeds: tuple[int, ...]
    kv_type: str
    haystack: str


@dataclass(frozen=True)
class Comparison:
    """Artifacts, the largest first, and the evidence that they differ.

    Attributes:
        reference: name of the artifact that the others are compared with: the base where it is
            one of them, else the largest; of equally large ones the nearest to the base.
        verdicts: by artifact, in their order.
        front: names of the artifacts on the Pareto front of size and quality.
        smallest: name of the smallest without a measurable loss against the reference, where
            every test had units enough to find one.
    """

    conditions: Conditions
    artifacts: tuple[Measured, ...]
    reference: str
    pairs: tuple[Pair, ...]
    ordering: Ordering
    verdicts: tuple[Verdict, ...]
    front: frozenset[str]
    smallest: str | None


def compared(artifacts: Sequence[Measured], conditions: Conditions) -> Comparison:
    """Everything that follows from what was measured.

    Raises:
        InputError: answers of two artifacts are not to the same questions.
        ValueError: two artifacts have one name, or one has none.
    """
    names = [artifact.name for artifact in artifacts]
    if len(set(names)) < len(names) or not all(names):
        raise ValueError(f"artifacts need different names, not {names}")
    ordered = sorted(artifacts, key=lambda a: (-a.size_bytes, a.divergence.mean, a.name))
    reference = next((a for a in ordered if a.is_base), ordered[0])
    others = [artifact for artifact in ordered if artifact is not reference]
    pairs = all_pairs([reference, *others])
    found = tuple(verdict(artifact.name, pairs, reference.name) for artifact in ordered)
    fine = [a for a, told in zip(ordered, found, strict=True) if told.without_loss]
    smallest = min(fine, key=lambda artifact: artifact.size_bytes, default=None)
    return Comparison(
        conditions=conditions,
        artifacts=tuple(ordered),
        reference=reference.name,
        pairs=pairs,
        ordering=order(ordered, pairs),
        verdicts=found,
        front=on_front(ordered),
        smallest=None if smallest is None else smallest.name,
    )


def on_front(artifacts: Sequence[Measured]) -> frozenset[str]:
    """Names of the artifacts that no other beats by being smaller and not worse, or better and
    not larger, in divergence and mean log-probability of right answers. Chance is not considered.
    """
    costs = {
        a.name: (a.size_bytes, a.divergence.mean, -(a.log_probability or 0.0)) for a in artifacts
    }
    return frozenset(
        name
        for name, mine in costs.items()
        if not any(
            other != mine and all(a <= b for a, b in zip(other, mine, strict=True))
            for other in costs.values()
        )
    )


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

    Ties are broken by the divergence from the base, then by the mean log-probability of right
    answers, then by hits.
    """
    names = [artifact.name for artifact in artifacts]
    wins = dict.fromkeys(names, 0)
    for pair in pairs:
        won = {">": 1, "<": -1}.get(relation(pairs, pair.first, pair.second).sign, 0)
        wins[pair.first] += won
        wins[pair.second] -= won

    def quality(artifact: Measured) -> tuple[float, ...]:
        known = artifact.log_probability
        answered = 0.0 if known is None else known
        return wins[artifact.name], -artifact.divergence.mean, answered, artifact.hits or 0

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


Outcome = Literal["reference", "same", "no loss", "worse", "better", "mixed", "too few"]

SHORT: dict[Outcome, str] = {
    "same": "the same",
    "no loss": "no measurable loss",
    "mixed": "worse and better",
    "too few": "too few to tell",
}

UNITS: dict[Kind, str] = {
    "KLD": "nats a token",
    "same top": "% of tokens",
    "hits": "answers",
    "log-probability": "nats an answer",
    "text": "nats a token",
}


@dataclass(frozen=True)
class Verdict:
    """What is known of the artifact `name` against the reference.

    Attributes:
        outcome: `same`: no unit differs; `mixed`: worse by one kind of evidence, better by
            another; `too few`: nothing tells a difference, and one kind of evidence at least
            could not have told any.
        sentence: with the numbers that it rests on; p-values are corrected ones.
        without_loss: whether nothing calls it worse, and everything that was measured could have.
    """

    name: str
    outcome: Outcome
    sentence: str
    without_loss: bool

    @property
    def short(self) -> str:
        """Two or three words for a table."""
        return SHORT.get(self.outcome, self.outcome)


def verdict(name: str, pairs: Sequence[Pair], reference: str) -> Verdict:
    """The artifact `name` against the one called `reference`."""
    if name == reference:
        return Verdict(name, "reference", "what the others are held against", False)
    pair = next(p for p in pairs if (p.first, p.second) == (reference, name))
    worse, better = pair.votes(-1), pair.votes(1)
    counted = units_text(pair)
    if worse or better:
        outcome: Outcome = "mixed" if worse and better else "worse" if worse else "better"
        parts = [
            f"{word} than {reference}: {'; '.join(_found(kind, pair) for kind in kinds)}"
            for word, kinds in (("worse", worse), ("better", better))
            if kinds
        ]
        sentence = "; but ".join(parts)
        silent = [
            f"{kind} {p_text(e.corrected_p)}"
            for kind, e in pair.evidence.items()
            if e.could_tell and not e.vote
        ]
        if silent:
            sentence += f"; no difference told by {', '.join(silent)}"
        if pair.unable and not worse:
            sentence += f"; {_too_few(pair)}"
    elif pair.unable:
        outcome = "too few"
        sentence = f"nothing tells it from {reference} at {counted}, but {_too_few(pair)}"
    elif pair.identical:
        outcome = "same"
        sentence = f"cannot be told from {reference}: no difference at all at {counted}"
    else:
        outcome = "no loss"
        values = ", ".join(f"{kind} {p_text(e.corrected_p)}" for kind, e in pair.evidence.items())
        sentence = f"no measurable loss against {reference} at {counted} ({values})"
    if not pair.identical:
        sentence += _interval(pair)
    return Verdict(name, outcome, sentence, pair.without_loss)


def _too_few(pair: Pair) -> str:
    """Why kinds of evidence that are silent say nothing."""
    reasons = []
    for kind in pair.unable:
        evidence = pair.evidence[kind]
        if kind == "hits" and not evidence.can_lose:
            reasons.append(f"hits tell nothing, because {pair.first} has none")
            continue
        best = p_text(evidence.best_corrected_p)
        if kind in OF_TEXT:
            reasons.append(f"too few chunks to tell by {kind}: {best} for a clear loss")
            continue
        lost = f"all {evidence.can_lose} hits" if kind == "hits" else "all"
        reasons.append(f"too few questions to tell by {kind}: were {lost} lost, {best} at best")
    return "; ".join(reasons)


def units_text(pair: Pair) -> str:
    """`n = 384 questions, 16 chunks of text`."""
    counts = []
    if "hits" in pair.evidence:
        counts.append(_counted(pair.evidence["hits"].units, "question"))
    counts.append(f"{_counted(pair.evidence['text'].units, 'chunk')} of text")
    return f"n = {', '.join(counts)}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def difference_text(kind: Kind, evidence: Evidence, *, unit: bool = True) -> str:
    """`−12 of 384 answers`, `−0.31 nats an answer`, `−7.1 % of tokens`; or the number alone."""
    if kind == "same top":
        value, of = _signed(100 * evidence.difference, ".3g"), UNITS[kind]
    elif kind == "hits":
        value, of = _signed(evidence.gained - evidence.lost, ".0f"), f"of {evidence.units} answers"
    else:
        value, of = _signed(evidence.difference, ".3g"), UNITS[kind]
    return f"{value} {of}" if unit else value


def _found(kind: Kind, pair: Pair) -> str:
    evidence = pair.evidence[kind]
    return f"{kind} {difference_text(kind, evidence)} ({p_text(evidence.corrected_p)})"


def _interval(pair: Pair) -> str:
    """Between what the mean loss lies, of answers if asked; below 0 it is a gain."""
    kind: Kind = "log-probability" if "log-probability" in pair.evidence else "text"
    found = pair.evidence[kind]
    if found.low is None or found.high is None:
        return ""
    least, most = (f"{0.0 - loss:.2g}".replace("-", "−") for loss in (found.high, found.low))
    return (
        f"; mean loss of log-probability between {least} and {most} {UNITS[kind]} (95 %, for all "
        "artifacts together)"
    )


def _signed(value: float, form: str) -> str:
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{abs(value):{form}}"
