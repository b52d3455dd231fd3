"""Quantization with the fastest kernel that gives ggml's bytes.

Eleven types have a SIMD kernel here (`simd`); all others use ggml's own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensor_types import QuantType
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize.kernels import simd


def prepare(kind: QuantType) -> None:
    """Make what `kind` needs, lookup tables or a SIMD kernel, before several threads ask for it."""
    ggml_kernels.prepare(kind)
    if kind.name in simd.KINDS:
        simd.simd_kernels()


def quantize(
    kind: QuantType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """`ggml_kernels.quantize` with a SIMD kernel where there is one: the same bytes, sooner."""
    fast = simd.simd_kernels() if importance is not None and kind.name in simd.KINDS else None
    return ggml_kernels.quantize(kind, rows, importance, fast.quantize if fast else None)
