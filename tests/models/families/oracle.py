"""The Python with torch that the oracle tests compare with: `make slow` sets it up."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax

from quantkit.formats.tensors import TensorSource
from quantkit.models.model import Model
from quantkit.quantize.quantize import quantize

LLAMA_CPP = os.environ.get("QUANTKIT_LLAMA_CPP", "")
TORCH_PYTHON = os.environ.get("QUANTKIT_TORCH_PYTHON", "")
HERE = Path(__file__).parent

needs_oracle = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        not (Path(LLAMA_CPP).is_dir() and Path(TORCH_PYTHON).is_file()),
        reason="'make slow' sets up llama.cpp's converter and a Python with torch: CONTRIBUTING.md",
    ),
]


def run_torch(script: str, *arguments: object) -> None:
    """Run a script of this folder with the other Python; it imports others of the folder."""
    done = subprocess.run(
        [TORCH_PYTHON, str(HERE / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        # which a command that a test ran in this process has set
        env={name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def f32_gguf(source: TensorSource, folder: Path) -> Path:
    """All of the source decoded: nothing is rounded on the way to llama.cpp."""
    folder.mkdir()
    types = {info.name: "F32" for info in source.tensors}
    (path,) = quantize(source, Model.of("f32", source), types, {}, folder, folder, workers=2)
    return path


def mean_kld(expected: NDArray[np.floating], found: NDArray[np.floating]) -> float:
    """Mean over positions of KL(expected ‖ found), from logits, in nats."""
    p, q = (log_softmax(logits.astype(np.float64), axis=-1) for logits in (expected, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())
