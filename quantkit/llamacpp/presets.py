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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.levels import PRESETS
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.formats.gguf_writer import single_file_layout, write_shape
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import ModelHeader
from quantkit.llamacpp.child import Emit, run_isolated

_LINE = re.compile(
    r"\[ *\d+/ *\d+\] +(?P<name>\S+) +- \[[^\]]*\], type = +(?P<stored>\S+), "
    r"size = +[\d.]+ MiB(?: -> +[\d.]+ MiB \((?P<chosen>\S+)\))?\s"
)
_FELL_BACK = re.compile(
    r"warning: (?P<name>\S+) +- ncols +\d+ not divisible by +\d+ "
    r"\(required for type +(?P<wanted>\S+)\).*?-> falling back to +(?P<given>\S+)"
)
_FALLBACK_COUNT = re.compile(r"WARNING: (\d+) of \d+ tensor\(s\) required fallback quantization")


@dataclass(frozen=True)
class Fallback:
    """The type that a preset wanted, and what llama.cpp took because rows do not divide into it."""

    wanted: str
    given: str


@dataclass(frozen=True)
class StockTypes:
    """The type that a preset gives every tensor, and where it is not the intended one."""

    preset: str
    types: Mapping[str, str]
    fallbacks: Mapping[str, Fallback]


def ask_preset(model: ModelHeader, preset: str, *, has_imatrix: bool) -> StockTypes:
    """The type that the preset gives each of the model's tensors.

    Raises:
        InputError: no such preset, or llama.cpp refuses the model.
        EnvironmentFault: this llama.cpp does not print its types.
    """
    if preset not in PRESETS:
        raise InputError(f"unknown preset {preset!r}; known are {', '.join(PRESETS)}")
    tensors = model.tensors
    with tempfile.TemporaryDirectory() as folder:
        path = write_shape(Path(folder), single_file_layout("shape", model.metadata, tensors))
        log: str = run_isolated(
            "quantkit.llamacpp.presets:dry_run_in_child",
            {"path": path, "preset": preset, "has_imatrix": has_imatrix},
        )
    types = {
        match["name"]: (match["chosen"] or match["stored"]).upper() for match in _LINE.finditer(log)
    }
    fallbacks = {
        match["name"]: Fallback(match["wanted"].upper(), match["given"].upper())
        for match in _FELL_BACK.finditer(log)
    }
    counted = _FALLBACK_COUNT.search(log)
    missing = [info.name for info in tensors if types.get(info.name) not in BY_NAME]
    if missing or len(fallbacks) != int(counted[1] if counted else 0):
        raise EnvironmentFault(
            f"llama.cpp's dry run of {preset} names a type for {len(tensors) - len(missing)} of "
            f"{len(tensors)} tensors and {len(fallbacks)} of {counted[1] if counted else 0} "
            "fallbacks; use the version of llama-cpp-python that constraints.txt pins"
        )
    return StockTypes(preset, {info.name: types[info.name] for info in tensors}, fallbacks)


def dry_run_in_child(path: Path, preset: str, has_imatrix: bool, emit: Emit) -> str:
    """Body of the child process of `ask_preset`: the log of the dry run."""
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
