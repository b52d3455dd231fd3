"""What an artifact and its base say at each position of a text, and the figures of it.

The conventions are llama-perplexity's (`tools/perplexity/perplexity.cpp`), so that figures can be
set beside those that others publish: a text is cut into chunks, each from an empty context, and
the positions of a chunk's second half count, the first half being context for them. Errors are
standard errors of a mean over positions, as if these were independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


@dataclass(frozen=True)
class Divergence:
    """How far an artifact's next-token distribution is from its base's on a text.

    `mean` to `maximum` are of the Kullback–Leibler divergence, nats; an error is a standard error.

    Attributes:
        tokens: positions that count.
        same_top: share of positions where both put the same token first.
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
        """Infinite of a broken model, where it is beyond what a float holds."""
        try:
            return math.exp(self.ln_ratio)
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Positions:
    """Values of the counted positions in the text's order, each of shape (positions,).

    Two artifacts' values on the same base and text are paired: position by position.

    Attributes:
        kld: Kullback–Leibler divergence of the artifact's distribution from the base's, nats.
        nll: negative log-probability that the artifact gives to the token that follows, nats.
        base_nll: that of the base.
        same_top: whether both put the same token first.
    """

    kld: F64
    nll: F64
    base_nll: F64
    same_top: NDArray[np.bool_]

    def summary(self) -> Divergence:
        """The figures of all positions, two at least."""
        same = float(self.same_top.mean())
        return Divergence(
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
    """`0.4988`, `0.00204`, `3.5e-05`: two digits or more, whatever the size.

    Args:
        of: the mean that `nats` is the error of; it decides the form.
    """
    size = nats if of is None else of
    if size == 0 or size >= 0.01:
        return f"{nats:.4f}"
    return f"{nats:.5f}" if size >= 1e-4 else f"{nats:.1e}"


def standard_error(values: F64) -> float:
    """Of the mean of two or more `values`."""
    return float(values.std(ddof=1) / np.sqrt(values.size))


def _perplexity(nll: F64) -> float:
    with np.errstate(over="ignore"):  # of a broken model; it is infinite then
        return float(np.exp(nll.mean()))
