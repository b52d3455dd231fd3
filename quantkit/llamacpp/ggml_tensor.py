"""ggml's tensors as ctypes sees them: the struct of ggml.h, and a tensor's values as an array.

llama.cpp's evaluation callback gets the address of one for every node of a graph.
"""

from __future__ import annotations

import ctypes
import functools

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault
from quantkit.llamacpp.shared_libraries import load

MAX_OPS = 256


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, up to its name."""


GgmlTensor._fields_ = (
    ("type", ctypes.c_int),
    ("buffer", ctypes.c_void_p),
    ("ne", ctypes.c_int64 * 4),
    ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int),
    ("op_params", ctypes.c_int32 * 16),
    ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(GgmlTensor) * 10),
    ("view_src", ctypes.POINTER(GgmlTensor)),
    ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p),
    ("name", ctypes.c_char * 64),
)


@functools.cache
def base_library() -> ctypes.CDLL:
    """libggml-base, with the signatures of what is called here and by those who import it."""
    library = load("ggml-base")
    library.ggml_op_name.restype = ctypes.c_char_p
    library.ggml_op_name.argtypes = (ctypes.c_int,)
    library.ggml_backend_buffer_is_host.restype = ctypes.c_bool
    library.ggml_backend_buffer_is_host.argtypes = (ctypes.c_void_p,)
    library.ggml_backend_tensor_get.restype = None
    library.ggml_backend_tensor_get.argtypes = (
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t,
    )  # fmt: skip
    library.ggml_backend_tensor_set.restype = None
    library.ggml_backend_tensor_set.argtypes = library.ggml_backend_tensor_get.argtypes
    library.ggml_nbytes.restype = ctypes.c_size_t
    library.ggml_nbytes.argtypes = (ctypes.c_void_p,)
    library.ggml_nelements.restype = ctypes.c_int64
    library.ggml_nelements.argtypes = (ctypes.c_void_p,)
    library.ggml_is_quantized.restype = ctypes.c_bool
    library.ggml_is_quantized.argtypes = (ctypes.c_int,)
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = (ctypes.c_int, ctypes.c_int64)
    return library


@functools.cache
def op_number(name: bytes) -> int:
    """The number of the operation called `name`, `MUL_MAT` for example, in this ggml."""
    for number in range(MAX_OPS):
        if base_library().ggml_op_name(number) == name:
            return number
    raise EnvironmentFault(f"this ggml has no operation {name.decode()}; update llama-cpp-python")


def tensor_array(
    pointer: ctypes._Pointer[GgmlTensor], dtype: type[np.generic]
) -> NDArray[np.generic]:
    """The tensor as a row-major numpy array (`ne` reversed); a view where it lies on the host."""
    tensor = pointer.contents
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    item = 4  # F32 activations and I32 expert ids
    size = sum([(n - 1) * b for n, b in zip(shape, strides, strict=True)], item)
    if base_library().ggml_backend_buffer_is_host(tensor.buffer):
        raw = (ctypes.c_char * size).from_address(tensor.data)
    else:
        raw = (ctypes.c_char * size)()
        base_library().ggml_backend_tensor_get(pointer, raw, 0, size)
    return np.ndarray(shape, dtype, raw, strides=strides)


def weight_name(raw: bytes) -> str:
    """`CUDA0#blk.0.attn_k.weight#0` → `blk.0.attn_k.weight`, as llama-imatrix does."""
    parts = raw.decode("utf-8", errors="replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
