"""A verdict in words for each artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from quantkit.report.comparison.evidence import Evidence, Kind, Pair
from quantkit.report.comparison.measured import Measured
from quantkit.report.comparison.paired_tests import p_text

Outcome = Literal["reference", "same", "no loss", "worse", "better", "mixed", "too few"]

SHORT: dict[Outcome, str] = {
    "reference": "reference",
    "same": "the same",
    "no loss": "no measurable loss",
    "worse": "worse",
    "better": "better",
    "mixed": "worse and better",
    "too few": "too few to tell",
}

UNITS: dict[Kind, str] = {
    "hits": "answers",
    "log-probability": "nats an answer",
    "text": "nats a token",
}


@dataclass(frozen=True)
class Verdict:
    """What is known of the artifact `name` against the `reference`.

    Attributes:
        outcome: `same`: no unit differs; `mixed`: worse by one kind of evidence, better by
            another; `too few`: nothing tells a difference, and one kind of evidence at least
            could not have told any.
        sentence: with the numbers that it rests on; p-values are corrected ones.
        without_loss: whether nothing calls it worse, and everything that was measured could have.
    """

    name: str
    reference: str
    outcome: Outcome
    sentence: str
    without_loss: bool

    @property
    def short(self) -> str:
        """Two or three words for a table."""
        return SHORT[self.outcome]


def verdicts(
    artifacts: Sequence[Measured], pairs: Sequence[Pair], reference: str
) -> tuple[Verdict, ...]:
    """One for each of `artifacts`, in their order, against the one called `reference`."""
    return tuple(_verdict(artifact.name, pairs, reference) for artifact in artifacts)


def smallest_without_loss(artifacts: Sequence[Measured], found: Sequence[Verdict]) -> str | None:
    """Name of the smallest artifact without a measurable loss; None: there is none, or units were
    too few to tell."""
    fine = {verdict.name for verdict in found if verdict.without_loss}
    chosen = [artifact for artifact in artifacts if artifact.name in fine]
    smallest = min(chosen, key=lambda artifact: artifact.size_bytes, default=None)
    return None if smallest is None else smallest.name


def _verdict(name: str, pairs: Sequence[Pair], reference: str) -> Verdict:
    if name == reference:
        return Verdict(name, reference, "reference", "what the others are held against", False)
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
    return Verdict(name, reference, outcome, sentence, pair.without_loss)


def _too_few(pair: Pair) -> str:
    """Why kinds of evidence that are silent say nothing."""
    reasons = []
    for kind in pair.unable:
        evidence = pair.evidence[kind]
        if kind == "hits" and not evidence.test.can_lose:
            reasons.append(f"hits tell nothing, because {pair.first} has none")
            continue
        units = "chunks" if kind == "text" else "questions"
        lost = f"all {evidence.test.can_lose} hits" if kind == "hits" else "all"
        best = p_text(evidence.best_corrected_p)
        reasons.append(f"too few {units} to tell by {kind}: were {lost} lost, {best} at best")
    return "; ".join(reasons)


def units_text(pair: Pair) -> str:
    """`n = 384 questions, 16 chunks of text`."""
    counts = []
    if "hits" in pair.evidence:
        counts.append(_counted(pair.evidence["hits"].test.units, "question"))
    counts.append(f"{_counted(pair.evidence['text'].test.units, 'chunk')} of text")
    return f"n = {', '.join(counts)}"


def _counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' if number != 1 else ''}"


def difference_text(kind: Kind, evidence: Evidence, *, unit: bool = True) -> str:
    """`−12 of 384 answers`, `−0.31 nats an answer`, `−0.012 nats a token`; or the number alone."""
    test = evidence.test
    if kind == "hits":
        value, of = _signed(test.gained - test.lost, ".0f"), f"of {test.units} answers"
    else:
        value = _signed(test.difference, ".3g")
        of = UNITS[kind]
    return f"{value} {of}" if unit else value


def _found(kind: Kind, pair: Pair) -> str:
    evidence = pair.evidence[kind]
    return f"{kind} {difference_text(kind, evidence)} ({p_text(evidence.corrected_p)})"


def _interval(pair: Pair) -> str:
    """Between what the mean loss lies, of answers if asked; below 0 it is a gain."""
    kind: Kind = "log-probability" if "log-probability" in pair.evidence else "text"
    test = pair.evidence[kind].test
    if test.low is None or test.high is None:
        return ""
    least, most = (f"{0.0 - loss:.2g}".replace("-", "−") for loss in (test.high, test.low))
    return (
        f"; mean loss between {least} and {most} {UNITS[kind]} (95 %, for all artifacts together)"
    )


def _signed(value: float, form: str) -> str:
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{abs(value):{form}}"
