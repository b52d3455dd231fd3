"""The types that llama.cpp's stock presets give a model's tensors: asked of llama.cpp itself.

Its rules look at names, counts and positions of tensors, at the architecture, and at whether there
is an importance matrix, and they change between versions; a type that a row does not divide into
is replaced by another. So they are not repeated here: `llama_model_quantize` goes through a file
of the model's shape, without weights, in its dry run, which prints each tensor's type.
"""

from __future__ import annotations

import ctypes
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from quantkit.errors import EnvironmentFault, InputError
from quantkit.formats.gguf_writer import lay_out, open_shard
from quantkit.native.child import Emit, run_isolated
from quantkit.quant_types import BY_NAME
from quantkit.values import Metadata, TensorInfo

PRESETS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS",
    "IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)  # fmt: skip
_LINE = re.compile(
    r"\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[[^\]]*\], type = +(?P<stored>\S+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<chosen>\S+)\))?\s"
)


def stock_types(
    metadata: Metadata, tensors: Sequence[TensorInfo], preset: str, *, has_imatrix: bool
) -> dict[str, str]:
    """Tensor → type under the preset, for all of `tensors`.

    Raises:
        InputError: no such preset, or llama.cpp refuses the model.
        EnvironmentFault: this llama.cpp does not tell what it would do.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    with tempfile.TemporaryDirectory() as folder:
        (layout,) = lay_out("shape", metadata, tensors, max_shard_bytes=1 << 62)
        path = Path(folder) / layout.file_name
        with open_shard(path, layout):
            pass  # a header, and a hole where the weights would be
        log: str = run_isolated(
            "quantkit.native.presets:dry_run_in_child",
            {"path": path, "preset": preset, "has_imatrix": has_imatrix},
        )
    types = {
        match["name"]: (match["chosen"] or match["stored"]).upper() for match in _LINE.finditer(log)
    }
    missing = [info.name for info in tensors if types.get(info.name) not in BY_NAME]
    if missing:
        raise EnvironmentFault(
            f"llama.cpp's dry run of {preset} names no type for {len(missing)} of {len(tensors)} "
            f"tensors, {missing[0]} for one; use the version of llama-cpp-python that "
            "constraints.txt pins"
        )
    return {info.name: types[info.name] for info in tensors}


def dry_run_in_child(path: Path, preset: str, has_imatrix: bool, emit: Emit) -> str:
    """Body of the child process of `stock_types`: the log of the dry run."""
    import llama_cpp

    said: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def keep(_level: int, text: bytes, _user: ctypes.c_void_p) -> None:
        said.append(text.decode("utf-8", errors="replace"))

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{preset}")
    params.allow_requantize = True
    params.dry_run = True
    if has_imatrix:  # that there is one decides, not what is in it
        entry = llama_cpp.llama_model_imatrix_data
        one = (ctypes.c_float * 1)(1.0)
        entries = (entry * 2)(entry(b"any", ctypes.cast(one, ctypes.POINTER(ctypes.c_float)), 1))
        params.imatrix = entries
    out = path.with_name("never-written.gguf")
    if llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), params) != 0:
        raise InputError(f"llama.cpp refuses this model: {''.join(said[-3:]).strip()}")
    return "".join(said)
