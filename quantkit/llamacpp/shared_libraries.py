"""ggml's shared libraries as llama-cpp-python installs them, loaded once through ctypes."""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import importlib.util
import os
from pathlib import Path

from quantkit.core.errors import EnvironmentFault

PACKAGE = "llama-cpp-python"


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
    # libllama asks for libggml-base.so.0, and wheels hold no links but copies: with the plain name
    # a process would have the library twice, each with lookup tables that take seconds to make.
    for suffix in (".so.0", ".so", ".dylib", ".dll"):
        candidates = [folder / f"lib{name}{suffix}", folder / f"{name}{suffix}"]
        for path in candidates:
            if path.exists():
                return ctypes.CDLL(str(path))
    raise EnvironmentFault(f"lib{name} is not in {folder}; install {PACKAGE} again from source")
