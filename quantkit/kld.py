"""Kullback–Leibler divergence of next-token distributions, from logits; exact where it is small.

With d = z' − z the differences of two rows of logits, and E the mean under the base's distribution,

    KLD = log E[exp(d)] − E[d] = log(1 + E[expm1(d − m)]) − E[d − m]    for any m; here m ≈ E[d]

so the logits' size cancels before anything is rounded: in F32 the error is about 1e-7 of the
differences, not of the logits. The textbook form, a difference of two log-softmaxes, loses every
KLD below 1e-6 to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.float32]
BLOCK_BYTES = 4 << 20
"""Of logits that a thread takes at a time; a few copies of them stay in its cache."""


@dataclass(frozen=True)
class BaseDistribution:
    """What divergences are measured from: logits and their softmax, (positions, vocabulary)."""

    logits: Logits
    probabilities: Logits

    @classmethod
    def of(cls, logits: Logits) -> BaseDistribution:
        """The distributions of `logits`, which are kept and not copied."""
        probabilities = np.empty_like(logits)
        for block in _blocks(logits):
            part = logits[block] - logits[block].max(axis=1, keepdims=True)
            np.exp(part, out=part)
            part /= part.sum(axis=1, keepdims=True)
            probabilities[block] = part
        return cls(logits, probabilities)

    def divergence(self, logits: Logits, pool: Executor) -> NDArray[np.float64]:
        """KLD of each position, nats, of another model's `logits` for the same tokens."""
        found = np.empty(len(logits), np.float64)

        def work(block: slice) -> None:
            found[block] = _divergence(self.logits[block], self.probabilities[block], logits[block])

        for _ in pool.map(work, _blocks(logits)):
            pass
        return found


def _blocks(logits: Logits) -> Iterator[slice]:
    rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    return (slice(at, at + rows) for at in range(0, len(logits), rows))


def _divergence(base: Logits, probabilities: Logits, logits: Logits) -> NDArray[np.float64]:
    x = logits - base
    x -= np.einsum("ij,ij->i", probabilities, x)[:, None]
    mean = (probabilities * x).sum(axis=1, dtype=np.float64)  # what rounding left of it
    with np.errstate(over="ignore"):
        np.expm1(x, out=x)
        x *= probabilities
        grown = x.sum(axis=1, dtype=np.float64)
    far = ~np.isfinite(grown)
    found = np.asarray(np.maximum(np.log1p(np.maximum(grown, -0.5)) - mean, 0.0))
    if far.any():  # differences beyond what exp can take in F32: of a broken model
        found[far] = _far_divergence(base[far], logits[far])
    return found


def _far_divergence(base: Logits, logits: Logits) -> NDArray[np.float64]:
    p, q = (_log_softmax(z.astype(np.float64)) for z in (base, logits))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    logits = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
