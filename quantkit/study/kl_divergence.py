"""Kullback–Leibler divergence of next-token distributions from logits, exact also where small.

With d = z' − z the differences of two rows of logits, and E the mean under the base's distribution,

    KLD = log E[exp(d)] − E[d] = log(1 + E[expm1(d − m)]) − E[d − m]    for any m; here m ≈ E[d]

so the logits' magnitude cancels before anything is rounded: the F32 error is about 1e-7 of the
differences, not of the logits. A difference of two log-softmaxes loses KLDs below 1e-6 to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
BLOCK_BYTES = 4 << 20
"""Logits per block of a thread; a few copies of it fit the cache."""
NEGLIGIBLE = 1e-15
"""Tokens of smaller probability may be -inf in the other model without adding to the KLD."""


@dataclass(frozen=True)
class BaseDistribution:
    """The reference of a divergence: logits and their softmax, (positions, vocabulary).

    Attributes:
        log_sums: ln Σ exp(logits) of each position.
    """

    logits: Logits
    probabilities: Logits
    log_sums: NDArray[np.float64]

    @classmethod
    def of(cls, logits: Logits) -> BaseDistribution:
        """The distributions of `logits`, which are not copied."""
        probabilities = np.empty_like(logits)
        log_sums = np.empty(len(logits), np.float64)
        for block in blocks(logits):
            top = logits[block].max(axis=1, keepdims=True)
            part = np.subtract(logits[block], top, out=probabilities[block])
            np.exp(part, out=part)
            sums = part.sum(axis=1, keepdims=True)
            part /= sums
            log_sums[block] = top[:, 0] + np.log(sums[:, 0], dtype=np.float64)
        return cls(logits, probabilities, log_sums)

    def divergence(self, logits: Logits, pool: Executor) -> NDArray[np.float64]:
        """KLD of each position, nats, of another model's `logits` for the same tokens."""

        def work(block: slice) -> NDArray[np.float64]:
            return _divergence(self.logits[block], self.probabilities[block], logits[block])[0]

        return np.concatenate(list(pool.map(work, blocks(logits))))


@dataclass(frozen=True)
class Comparison:
    """KLD and negative log-probability of the next token, nats, each of shape (positions,)."""

    kld: NDArray[np.float64]
    nll: NDArray[np.float64]


def compare(base: Logits, logits: Logits, targets: NDArray[np.int32]) -> Comparison:
    """Compare another model's `logits`, followed by the tokens `targets`, with the `base`'s.

    Values are NaN or infinite where the logits are.
    """
    expected = BaseDistribution.of(base)
    kld, gained = _divergence(base, expected.probabilities, logits)
    target = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return Comparison(kld, expected.log_sums + gained - target)


def blocks(logits: Logits) -> Iterator[slice]:
    """Blocks of rows for threads."""
    rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    return (slice(at, at + rows) for at in range(0, len(logits), rows))


def _divergence(
    base: Logits, probabilities: Logits, logits: Logits
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """KLD, and by how much ln Σ exp is larger for `logits` than for `base`."""
    with np.errstate(over="ignore", invalid="ignore"):
        x = logits - base
        shift = np.einsum("ij,ij->i", probabilities, x)
        x -= shift[:, None]
        mean = (probabilities * x).sum(axis=1, dtype=np.float64)  # what rounding left over
        np.expm1(x, out=x)
        x *= probabilities
        grown = np.log1p(np.maximum(x.sum(axis=1, dtype=np.float64), -0.5))
        found, gained = np.maximum(grown - mean, 0.0), grown + shift
    far = ~np.isfinite(found)
    if far.any():  # exp overflows in F32: a broken model, or -inf
        found[far], gained[far] = _far_divergence(base[far], logits[far])
    return found, gained


def _far_divergence(
    base: Logits, logits: Logits
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    wide = base.astype(np.float64), logits.astype(np.float64)
    base_sums, sums = (_log_sum(z) for z in wide)
    p, q = wide[0] - base_sums, wide[1] - sums
    weights = np.exp(p)
    with np.errstate(invalid="ignore"):
        terms = weights * (p - q)
    terms[(weights < NEGLIGIBLE) & ~np.isfinite(terms)] = 0.0
    return terms.sum(axis=1), (sums - base_sums)[:, 0]


def _log_sum(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    top = logits.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return np.asarray(top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))
