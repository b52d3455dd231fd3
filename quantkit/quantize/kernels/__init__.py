"""Quantization by the fastest kernel with ggml's bytes: `simd` for eleven types, else ggml's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensor_types import QuantType
from quantkit.llamacpp import ggml_kernels
from quantkit.quantize.kernels import simd


def prepare(kind: QuantType) -> None:
    """Create the lookup tables or the SIMD kernel of `kind`, before several threads use them."""
    ggml_kernels.prepare(kind)
    if kind.name in simd.KINDS:
        simd.simd_kernels()


def quantize(
    kind: QuantType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """`ggml_kernels.quantize`, by a SIMD kernel if there is one: the same bytes."""
    fast = simd.simd_kernels() if importance is not None and kind.name in simd.KINDS else None
    return ggml_kernels.quantize(kind, rows, importance, fast.quantize if fast else None)
