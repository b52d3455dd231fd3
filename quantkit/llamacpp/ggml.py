"""ggml and llama.cpp through ctypes: the shared libraries, ggml's functions, and its tensors.

llama.cpp's evaluation callback gets the address of a `ggml_tensor` for every node of a graph.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
from ctypes import POINTER, c_bool, c_char, c_char_p, c_int, c_int32, c_int64, c_size_t, c_void_p
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quantkit.core.errors import EnvironmentFault

PACKAGE = "llama-cpp-python"
MAX_OPS = 256


class GgmlTensor(ctypes.Structure):
    """`struct ggml_tensor` of ggml.h, up to its name."""


GgmlTensor._fields_ = (
    ("type", c_int),
    ("buffer", c_void_p),
    ("ne", c_int64 * 4),
    ("nb", c_size_t * 4),
    ("op", c_int),
    ("op_params", c_int32 * 16),
    ("flags", c_int32),
    ("src", POINTER(GgmlTensor) * 10),
    ("view_src", POINTER(GgmlTensor)),
    ("view_offs", c_size_t),
    ("data", c_void_p),
    ("name", c_char * 64),
)


class TypeTraits(ctypes.Structure):
    """`struct ggml_type_traits` of ggml.h, up to its `to_float`."""

    _fields_ = (
        ("type_name", c_char_p),
        ("blck_size", c_int64),
        ("blck_size_interleave", c_int64),
        ("type_size", c_size_t),
        ("is_quantized", c_bool),
        ("to_float", c_void_p),
    )


_SIGNATURES = {
    "op_name": (c_char_p, c_int),
    "nbytes": (c_size_t, c_void_p),
    "nelements": (c_int64, c_void_p),
    "row_size": (c_size_t, c_int, c_int64),
    "is_quantized": (c_bool, c_int),
    "get_type_traits": (POINTER(TypeTraits), c_int),
    "validate_row_data": (c_bool, c_int, c_void_p, c_size_t),
    "quantize_init": (None, c_int),
    "quantize_chunk": (
        c_size_t, c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p,
    ),
    "backend_buffer_is_host": (c_bool, c_void_p),
    "backend_tensor_get": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "backend_tensor_set": (None, c_void_p, c_void_p, c_size_t, c_size_t),
    "backend_buft_name": (c_char_p, c_void_p),
    "backend_dev_buffer_type": (c_void_p, c_void_p),
    "backend_dev_memory": (None, c_void_p, POINTER(c_size_t), POINTER(c_size_t)),
    "backend_dev_name": (c_char_p, c_void_p),
    "backend_dev_type": (c_int, c_void_p),
    "backend_reg_dev_get": (c_void_p, c_void_p, c_size_t),
}  # fmt: skip
"""Function of libggml-base, without `ggml_` → result and arguments."""


@functools.cache
def library_version() -> str:
    """Version of llama-cpp-python, which pins the llama.cpp that it vendors."""
    return importlib.metadata.version(PACKAGE)


@functools.cache
def load(name: str) -> ctypes.CDLL:
    """Load `lib{name}` (`ggml-base`, `ggml-cpu`, `llama`) without starting any backend.

    LLAMA_CPP_LIB_PATH names the folder of another build, as it does for llama-cpp-python itself.

    Raises:
        EnvironmentFault: llama-cpp-python is not installed, or was built without that library.
    """
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise EnvironmentFault(f"{PACKAGE} is not installed; run: pip install {PACKAGE}")
    folder = Path(os.environ.get("LLAMA_CPP_LIB_PATH") or Path(spec.origin).parent / "lib")
    # libllama links libggml-base.so.0, and wheels hold copies instead of links: loading the plain
    # name would load the library twice, each with lookup tables that take seconds to make.
    for suffix in (".so.0", ".so", ".dylib", ".dll"):
        for path in (folder / f"lib{name}{suffix}", folder / f"{name}{suffix}"):
            if path.exists():
                return ctypes.CDLL(str(path))
    raise EnvironmentFault(f"lib{name} is not in {folder}; install {PACKAGE} again from source")


@functools.cache
def base_library() -> ctypes.CDLL:
    """libggml-base with the signatures of the functions that quantkit calls."""
    library = load("ggml-base")
    for name, (result, *arguments) in _SIGNATURES.items():
        function = getattr(library, f"ggml_{name}")
        function.restype, function.argtypes = result, arguments
    return library


@functools.cache
def op_number(name: bytes) -> int:
    """The number of the operation called `name`, for example `MUL_MAT`, in this ggml."""
    for number in range(MAX_OPS):
        if base_library().ggml_op_name(number) == name:
            return number
    raise EnvironmentFault(f"this ggml has no operation {name.decode()}; update llama-cpp-python")


def tensor_array(
    pointer: ctypes._Pointer[GgmlTensor], dtype: type[np.generic]
) -> NDArray[np.generic]:
    """The tensor as a row-major numpy array (`ne` reversed); a view if it is in host memory."""
    tensor = pointer.contents
    shape, strides = tensor.ne[::-1], tensor.nb[::-1]
    item = 4  # F32 activations and I32 expert ids
    size = sum([(n - 1) * b for n, b in zip(shape, strides, strict=True)], item)
    if base_library().ggml_backend_buffer_is_host(tensor.buffer):
        raw = (c_char * size).from_address(tensor.data)
    else:
        raw = (c_char * size)()
        base_library().ggml_backend_tensor_get(pointer, raw, 0, size)
    return np.ndarray(shape, dtype, raw, strides=strides)


def weight_name(raw: bytes) -> str:
    """`CUDA0#blk.0.attn_k.weight#0` → `blk.0.attn_k.weight`, as llama-imatrix does."""
    parts = raw.decode("utf-8", errors="replace").split("#")
    return parts[1] if len(parts) > 1 else parts[0]
