"""Per-position statistics of an artifact against its base, and their summary.

The conventions are llama-perplexity's (`tools/perplexity/perplexity.cpp`), so that figures compare
with published ones: a text is cut into chunks, each from an empty context, and the second half of
each chunk is scored. Errors are standard errors of a mean over positions, taken as independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class KLDStatistics:
    """Summary of an artifact's KL divergence from its base on a text.

    `mean` to `maximum` are of the KL divergence in nats; an error is a standard error.

    Attributes:
        tokens: number of scored positions.
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
        try:
            return math.exp(self.ln_ratio)
        except OverflowError:
            return math.inf


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
            perplexity=_perplexity(self.nll),
            base_perplexity=_perplexity(self.base_nll),
            ln_ratio=float((self.nll - self.base_nll).mean()),
            ln_ratio_error=standard_error(self.nll - self.base_nll),
        )


def kld_text(nats: float, of: float | None = None) -> str:
    """`0.4988`, `0.00204`, `3.5e-05`: at least two significant digits.

    Args:
        of: if `nats` is an error, the mean that it belongs to, which decides the format.
    """
    size = nats if of is None else of
    if size == 0 or size >= 0.01:
        return f"{nats:.4f}"
    return f"{nats:.5f}" if size >= 1e-4 else f"{nats:.1e}"


def standard_error(values: F64) -> float:
    """Of the mean of two or more `values`."""
    return float(values.std(ddof=1) / np.sqrt(values.size))


def _perplexity(nll: F64) -> float:
    with np.errstate(over="ignore"):  # a broken model's is infinite
        return float(np.exp(nll.mean()))
