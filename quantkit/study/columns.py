"""How much a column of a matrix counts in the relative error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LARGEST = 1000.0
"""Of a column's weight, in medians of its matrix.

A few columns carry the massive activations of an attention sink, 10^5 times the others' in some
layers. Their outputs are normalised away, so that their error costs next to nothing; uncapped they
would be nearly all of Σ w·(x − q(x))², and errors of two types could not be compared (ADR 10).
"""


def column_weights(
    importance: NDArray[np.float32] | None, matrix: int, width: int
) -> NDArray[np.float64]:
    """Mean squared activations of `matrix`, capped, shape (width,); ones without statistics."""
    if importance is None:
        return np.ones(width)
    weights = importance[matrix].astype(np.float64)
    seen = weights[weights > 0]
    limit = LARGEST * float(np.median(seen)) if seen.size else 0.0
    return np.asarray(np.minimum(weights, limit), np.float64)
