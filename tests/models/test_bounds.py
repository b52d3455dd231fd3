"""Memory does not grow with the model, and nothing is written but the result."""

from __future__ import annotations

from pathlib import Path

import make_shape
import pytest
from checkpoints import NEMOTRON
from memory import cost_of_quantkit

from quantkit.models.checkpoint import open_checkpoint

# 64 experts of 1024 × 2048 in two tensors of 0.27 GB each, in BF16.
WIDE = NEMOTRON | {
    "hybrid_override_pattern": "E",
    "num_nextn_predict_layers": 0,
    "vocab_size": 2048,
    "n_routed_experts": 64,
    "moe_latent_size": 1024,
    "moe_intermediate_size": 2048,
}
MEGABYTE = 10**6


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shape.write_checkpoint(tmp_path_factory.mktemp("wide") / "model", WIDE)


@pytest.mark.parametrize(("kind", "bits"), [("BF16", 16), ("Q8_0", 8.5)])
def test_converting_takes_less_memory_than_its_largest_tensor(
    wide: Path, tmp_path: Path, kind: str, bits: float
) -> None:
    largest = max(info.elements for info in open_checkpoint(wide).tensors)
    assert 2 * largest > 265 * MEGABYTE
    out = tmp_path / "out.gguf"
    cost = cost_of_quantkit(
        "convert", "--model", wide, "--out", out, "--type", kind, "--workers", 2, "--quiet"
    )
    size = out.stat().st_size
    out.unlink()
    assert size > 2 * largest * bits / 8
    assert cost.peak_bytes < 120 * MEGABYTE
    # Straight from safetensors into the result: no intermediate file was written.
    assert size <= cost.written_bytes < 1.01 * size
