"""Which artifacts are worth their bytes: none that is smaller is as good."""

from __future__ import annotations

from collections.abc import Sequence

from quantkit.report.comparison.measured import Measured


def on_front(artifacts: Sequence[Measured]) -> frozenset[str]:
    """Names of those that no other artifact beats: smaller and not worse, or better and as small.

    Worse is meant in every figure that was measured, divergence from the base and mean
    log-probability of right answers, as they stand; whether a difference is more than chance is
    for the tests.
    """
    return frozenset(
        mine.name
        for mine in artifacts
        if not any(_beats(other, mine) for other in artifacts if other is not mine)
    )


def _costs(artifact: Measured) -> tuple[float, float, float]:
    """Bytes and what is lost; of each, less is better."""
    gained = artifact.log_probability
    return artifact.size_bytes, artifact.divergence.mean, 0.0 if gained is None else -gained


def _beats(one: Measured, other: Measured) -> bool:
    mine, others = _costs(one), _costs(other)
    return mine != others and all(a <= b for a, b in zip(mine, others, strict=True))
