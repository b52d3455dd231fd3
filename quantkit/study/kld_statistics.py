"""KL divergence of next-token distributions from logits, and its statistics over a text.

With d = z' − z the differences of two rows of logits, and E the mean under the base's distribution,

    KLD = log E[exp(d)] − E[d] = log(1 + E[expm1(d − m)]) − E[d − m]    for any m; here m ≈ E[d]

so the logits' magnitude cancels before anything is rounded: the F32 error is about 1e-7 of the
differences, not of the logits. A difference of two log-softmaxes loses KLDs below 1e-6 to rounding.

The conventions of the statistics are llama-perplexity's (`tools/perplexity/perplexity.cpp`): a text
is cut into chunks, each from an empty context, and the second half of each chunk is scored. Errors
are standard errors of a mean over positions, taken as independent.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
Logits = NDArray[np.float32]
BLOCK_BYTES = 4 << 20
"""Logits per block of a thread; a few copies of it fit the cache."""
NEGLIGIBLE = 1e-15
"""Tokens of smaller probability may be -inf in the other model without adding to the KLD."""


@dataclass(frozen=True)
class BaseDistribution:
    """Logits and their softmax, (positions, vocabulary), and ln Σ exp(logits) of each position."""

    logits: Logits
    probabilities: Logits
    log_sums: F64

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

    def divergence(self, logits: Logits, pool: Executor) -> F64:
        """KLD of each position, nats, of another model's `logits` for the same tokens."""

        def work(block: slice) -> F64:
            return _divergence(self.logits[block], self.probabilities[block], logits[block])[0]

        return np.concatenate(list(pool.map(work, blocks(logits))))


def compare(base: Logits, logits: Logits, targets: NDArray[np.int32]) -> tuple[F64, F64]:
    """Compare another model's `logits`, followed by the tokens `targets`, with the `base`'s.

    Returns:
        KLD and negative log-probability of the next token, nats, each of shape (positions,); NaN
        or infinite where the logits are.
    """
    expected = BaseDistribution.of(base)
    kld, gained = _divergence(base, expected.probabilities, logits)
    target = np.take_along_axis(logits, targets[:, None], axis=1)[:, 0]
    return kld, expected.log_sums + gained - target


def blocks(logits: Logits) -> Iterator[slice]:
    """Blocks of rows for threads."""
    rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
    return (slice(at, at + rows) for at in range(0, len(logits), rows))


def _divergence(base: Logits, probabilities: Logits, logits: Logits) -> tuple[F64, F64]:
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


def _far_divergence(base: Logits, logits: Logits) -> tuple[F64, F64]:
    from scipy.special import logsumexp

    base_sums, sums = (logsumexp(z.astype(np.float64), axis=1) for z in (base, logits))
    with np.errstate(invalid="ignore"):
        p, q = base - base_sums[:, None], logits - sums[:, None]
        weights = np.exp(p)
        terms = weights * (p - q)
    terms[(weights < NEGLIGIBLE) & ~np.isfinite(terms)] = 0.0
    return terms.sum(axis=1), sums - base_sums


@dataclass(frozen=True)
class KLDStatistics:
    """Summary of an artifact's KL divergence from its base at `tokens` scored positions.

    `mean` to `maximum` are of the KL divergence in nats; an error is a standard error.

    Attributes:
        same_top: share of positions with the same most likely token.
        ln_ratio: ln(perplexity / base_perplexity); its error is of the paired differences.
    """

    tokens: int
    mean: float
    mean_error: float
    median: float
    p99: float
    p999: float
    maximum: float
    same_top: float
    same_top_error: float
    perplexity: float
    base_perplexity: float
    ln_ratio: float
    ln_ratio_error: float

    @property
    def perplexity_ratio(self) -> float:
        """Infinite if it overflows, as for a broken model."""
        return _exp(self.ln_ratio)


@dataclass(frozen=True)
class PositionStatistics:
    """Values of the scored positions in the text's order, each of shape (positions,).

    The values of two artifacts on the same base and text are paired by position.

    Attributes:
        kld: KL divergence of the artifact's distribution from the base's, nats.
        nll: negative log-likelihood of the next token by the artifact, nats.
        base_nll: the same by the base.
        same_top: whether both have the same most likely token.
    """

    kld: F64
    nll: F64
    base_nll: F64
    same_top: NDArray[np.bool_]

    def summary(self) -> KLDStatistics:
        """Summary of all positions, of which there must be two or more."""
        same = float(self.same_top.mean())
        return KLDStatistics(
            tokens=self.kld.size,
            mean=float(self.kld.mean()),
            mean_error=standard_error(self.kld),
            median=float(np.median(self.kld)),
            p99=float(np.quantile(self.kld, 0.99)),
            p999=float(np.quantile(self.kld, 0.999)),
            maximum=float(self.kld.max()),
            same_top=same,
            same_top_error=float(np.sqrt(same * (1 - same) / (self.kld.size - 1))),
            perplexity=_exp(self.nll.mean()),
            base_perplexity=_exp(self.base_nll.mean()),
            ln_ratio=float((self.nll - self.base_nll).mean()),
            ln_ratio_error=standard_error(self.nll - self.base_nll),
        )


def kld_text(nats: float, of: float | None = None) -> str:
    """`0.4988`, `0.00204`, `3.5e-05`: at least two significant digits.

    If `nats` is an error, the mean that it is `of` decides the format.
    """
    size = nats if of is None else of
    if size == 0 or size >= 0.01:
        return f"{nats:.4f}"
    return f"{nats:.5f}" if size >= 1e-4 else f"{nats:.1e}"


def kld_with_error(nats: float, error: float | None) -> str:
    """`0.0123 ± 0.0008`; without an error that is known, as `kld_text`."""
    return kld_text(nats) + (f" ± {kld_text(error, of=nats)}" if error else "")


def standard_error(values: F64) -> float:
    """Of the mean of two or more `values`."""
    return float(values.std(ddof=1) / np.sqrt(values.size))


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):  # a broken model's is infinite
        return float(np.exp(value))
