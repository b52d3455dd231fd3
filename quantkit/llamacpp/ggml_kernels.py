"""ggml's quantization kernels on numpy arrays: rows in, blocks out, and back.

ctypes releases the GIL while a kernel runs, so callers may use threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensor_types import QuantType
from quantkit.llamacpp.ggml import base_library

Blocks = Callable[[QuantType, NDArray[np.float32], NDArray[np.float32] | None], NDArray[np.uint8]]
"""(type, rows, importance of the columns) → blocks, shape (rows, bytes per row)."""

_TO_FLOAT = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)


def prepare(kind: QuantType) -> None:
    """Create the lookup tables of `kind`, before several threads use them."""
    base_library().ggml_quantize_init(kind.ggml_id)


def quantize(
    kind: QuantType,
    rows: NDArray[np.float32],
    importance: NDArray[np.float32] | None,
    blocks: Blocks | None = None,
) -> NDArray[np.uint8]:
    """Quantize `rows` (rows × row elements, F32) to `kind`; returns (rows × row bytes).

    Args:
        importance: weights of the columns, shape (row elements,), as llama-quantize's imatrix.
        blocks: the kernel for block types; None for ggml's own.

    Raises:
        ValueError: the row is not a whole number of blocks, or `kind` needs an importance.
    """
    n_columns = rows.shape[1]
    if not kind.fits_row(n_columns):
        raise ValueError(f"row of {n_columns} is not a multiple of {kind.block_elements}")
    if kind.needs_imatrix and importance is None:
        raise ValueError(f"{kind.name} needs an importance matrix")
    if importance is not None and importance.shape != (n_columns,):
        raise ValueError(f"importance has shape {importance.shape}, the row {n_columns}")
    source = np.ascontiguousarray(rows, dtype=np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, dtype=np.float32)
    return (blocks or ggml_blocks)(kind, source, weights)


def ggml_blocks(
    kind: QuantType, rows: NDArray[np.float32], importance: NDArray[np.float32] | None
) -> NDArray[np.uint8]:
    """`ggml_quantize_chunk` of contiguous rows of whole blocks, or of floats of any length."""
    n_rows, n_columns = rows.shape
    out = np.empty((n_rows, kind.size_bytes(n_columns)), np.uint8)
    written = base_library().ggml_quantize_chunk(
        kind.ggml_id,
        rows.ctypes.data,
        out.ctypes.data,
        0,
        n_rows,
        n_columns,
        None if importance is None else importance.ctypes.data,
    )
    if written != out.nbytes:
        raise ValueError(f"ggml wrote {written} bytes for {kind.name}, expected {out.nbytes}")
    return out


def is_finite(kind: QuantType, raw: NDArray[np.uint8]) -> bool:
    """Whether `raw` bytes of type `kind` decode to finite numbers, as llama-quantize checks."""
    flat = np.ascontiguousarray(raw)
    return bool(base_library().ggml_validate_row_data(kind.ggml_id, flat.ctypes.data, flat.nbytes))


def dequantize(kind: QuantType, raw: NDArray[np.uint8], row_elements: int) -> NDArray[np.float32]:
    """Decode `raw` bytes of type `kind` to F32 of shape (rows, `row_elements`)."""
    flat = np.ascontiguousarray(raw).reshape(-1)
    if kind.name == "F32":
        return flat.view("<f4").astype(np.float32).reshape(-1, row_elements)
    elements = flat.size // kind.block_bytes * kind.block_elements
    out = np.empty(elements, np.float32)
    traits = base_library().ggml_get_type_traits(kind.ggml_id).contents
    if not traits.to_float:
        raise ValueError(f"ggml cannot decode {kind.name}")
    _TO_FLOAT(traits.to_float)(flat.ctypes.data, out.ctypes.data, elements)
    return out.reshape(-1, row_elements)
