"""What the comparison says of each artifact, in words."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Literal

from quantkit.comparison.evidence import Evidence, Kind, Pair
from quantkit.comparison.measured import Measured
from quantkit.comparison.paired_tests import p_text

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


SMALL_NATS = 0.01
"""Right answers, and a text's tokens, are then 1 % less likely."""

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
            another; `too few`: no test could have told anything.
        sentence: with the numbers that it rests on; p-values are corrected ones.
        within_a_percent: whether every interval of a loss ends before `SMALL_NATS`: not only that
            no more is seen, but that more would have been.
    """

    name: str
    reference: str
    outcome: Outcome
    sentence: str
    within_a_percent: bool

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
    """Name of the smallest artifact that nothing tells to be worse; None: nothing could tell."""
    fine = {verdict.name for verdict in found if verdict.outcome in ("same", "no loss", "better")}
    return _smallest(artifacts, fine)


def smallest_within_a_percent(
    artifacts: Sequence[Measured], found: Sequence[Verdict]
) -> str | None:
    """Name of the smallest artifact that is shown to lose less than 1 %; None: none is."""
    return _smallest(artifacts, {verdict.name for verdict in found if verdict.within_a_percent})


def _smallest(artifacts: Sequence[Measured], names: AbstractSet[str]) -> str | None:
    chosen = [artifact for artifact in artifacts if artifact.name in names]
    smallest = min(chosen, key=lambda artifact: artifact.size_bytes, default=None)
    return None if smallest is None else smallest.name


def _verdict(name: str, pairs: Sequence[Pair], reference: str) -> Verdict:
    if name == reference:
        return Verdict(name, reference, "reference", "what the others are held against", False)
    pair = next(p for p in pairs if {p.first, p.second} == {name, reference}).seen_from(reference)
    worse, better = pair.votes(-1), pair.votes(1)
    small = _loses_less_than_a_percent(pair)
    if worse or better:
        little = ", but by less than 1 %" if small else ""
        outcome: Outcome = "mixed" if worse and better else "worse" if worse else "better"
        parts = [
            f"{word} than {reference}{tail}: {'; '.join(_found(kind, pair) for kind in kinds)}"
            for word, kinds, tail in (("worse", worse, little), ("better", better, ""))
            if kinds
        ]
        return Verdict(name, reference, outcome, "; but ".join(parts), small)
    counted = units_text(pair)
    if not pair.could_tell:
        best = min(found.best_corrected_p for found in pair.evidence.values())
        sentence = (
            f"nothing can be said against {reference} at {counted}: even if all of them differed, "
            f"{p_text(best)} at best"
        )
        return Verdict(name, reference, "too few", sentence, small)
    if pair.identical:
        sentence = f"cannot be told from {reference}: no difference at all at {counted}"
        return Verdict(name, reference, "same", sentence, small)
    values = ", ".join(f"{kind} {p_text(e.corrected_p)}" for kind, e in pair.evidence.items())
    sentence = f"no measurable loss against {reference} at {counted} ({values})"
    return Verdict(name, reference, "no loss", sentence + _ruled_out(pair), small)


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


def _loses_less_than_a_percent(pair: Pair) -> bool:
    """Of log-probabilities by their intervals; hits must not be told to be fewer."""
    lows = [found.test.low for kind, found in pair.evidence.items() if kind != "hits"]
    return (
        pair.could_tell
        and "hits" not in pair.votes(-1)
        and all(low is not None and low > -SMALL_NATS for low in lows)
    )


def _ruled_out(pair: Pair) -> str:
    """How large a loss could still be there unseen: the interval's end, of answers if asked."""
    kind: Kind = "log-probability" if "log-probability" in pair.evidence else "text"
    low = pair.evidence[kind].test.low
    if low is None or low >= 0:
        return ""
    return f"; a loss of {-low:.2g} {UNITS[kind]} or more is unlikely"


def _signed(value: float, form: str) -> str:
    sign = "−" if value < 0 else "+" if value > 0 else ""
    return f"{sign}{abs(value):{form}}"
