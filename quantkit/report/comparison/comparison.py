"""A whole comparison: the artifacts, and everything that follows from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.report.comparison.evidence import Pair, all_pairs
from quantkit.report.comparison.measured import Measured
from quantkit.report.comparison.ordering import Ordering, order
from quantkit.report.comparison.verdicts import Verdict, smallest_without_loss, verdicts


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
    found = verdicts(ordered, pairs, reference.name)
    return Comparison(
        conditions=conditions,
        artifacts=tuple(ordered),
        reference=reference.name,
        pairs=pairs,
        ordering=order(ordered, pairs),
        verdicts=found,
        front=on_front(ordered),
        smallest=smallest_without_loss(ordered, found),
    )


def on_front(artifacts: Sequence[Measured]) -> frozenset[str]:
    """Names of the artifacts that no other beats by being smaller and not worse, or better and
    not larger, in divergence and mean log-probability of right answers. Chance is not considered.
    """
    return frozenset(
        mine.name
        for mine in artifacts
        if not any(_beats(other, mine) for other in artifacts if other is not mine)
    )


def _costs(artifact: Measured) -> tuple[float, float, float]:
    """Bytes, divergence and lost log-probability; less is better."""
    gained = artifact.log_probability
    return artifact.size_bytes, artifact.divergence.mean, 0.0 if gained is None else -gained


def _beats(one: Measured, other: Measured) -> bool:
    mine, others = _costs(one), _costs(other)
    return mine != others and all(a <= b for a, b in zip(mine, others, strict=True))
