"""ggml's kernels through our binding, with gguf's Python implementations as oracle."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.formats.tensor_types import BY_NAME, quant_type
from quantkit.llamacpp import ggml_kernels

ROWS = np.random.default_rng(3).standard_normal((4, 512), np.float32)


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16", "F16", "F32"])
def test_bytes_equal_gguf(name: str) -> None:
    ours = ggml_kernels.quantize(quant_type(name), ROWS, None)
    theirs = gguf.quants.quantize(ROWS, gguf.GGMLQuantizationType[name])
    assert np.array_equal(ours.reshape(-1), theirs.view(np.uint8).reshape(-1))


@pytest.mark.parametrize("name", [*STOCK_CANDIDATES, "MXFP4", "TQ1_0", "TQ2_0"])
def test_decoding_equals_gguf_and_is_near(name: str) -> None:
    kind = BY_NAME[name]
    raw = ggml_kernels.quantize(kind, ROWS, np.ones(512, np.float32))
    ours = ggml_kernels.dequantize(kind, raw, 512)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[name])
    assert np.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    error = np.square(ROWS - ours).sum() / np.square(ROWS).sum()
    if name in STOCK_CANDIDATES:  # the ternary and one-bit types are for models trained for them
        assert error < 2.0 * 4.0 ** -(kind.bits_per_weight - 1.0)


def test_importance_moves_the_error_to_unimportant_columns() -> None:
    heavy = np.arange(512) % 4 == 0  # within every block: a block has only one scale
    importance = np.where(heavy, 100.0, 0.01).astype(np.float32)
    kind = quant_type("IQ2_XS")
    plain, weighed = (
        np.square(ROWS - ggml_kernels.dequantize(kind, ggml_kernels.quantize(kind, ROWS, w), 512))
        for w in (np.ones(512, np.float32), importance)
    )
    assert weighed[:, heavy].sum() < 0.7 * plain[:, heavy].sum()
    assert weighed[:, ~heavy].sum() > plain[:, ~heavy].sum()


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 256"):
        ggml_kernels.quantize(quant_type("Q4_K"), ROWS[:, :288], None)
    with pytest.raises(ValueError, match="needs an importance"):
        ggml_kernels.quantize(quant_type("IQ1_S"), ROWS, None)
    with pytest.raises(ValueError, match="importance has shape"):
        ggml_kernels.quantize(quant_type("Q4_K"), ROWS, np.ones(256, np.float32))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K", "Q5_1"])
def test_blocks_that_decode_to_no_number_are_told(name: str) -> None:
    kind, importance = quant_type(name), np.ones(512, np.float32)
    assert ggml_kernels.is_finite(kind, ggml_kernels.quantize(kind, ROWS, importance))
    broken = ROWS.copy()
    broken[2, 300] = np.inf
    assert not ggml_kernels.is_finite(kind, ggml_kernels.quantize(kind, broken, importance))


def test_bf16_rounds_to_even_and_keeps_nan() -> None:
    bits = np.array([[0x3F808000, 0x3F818000, 0x7F800001, 0x7F7FFFFF]], np.uint32)
    stored = ggml_kernels.quantize(quant_type("BF16"), bits.view(np.float32), None).view("<u2")
    assert [hex(v) for v in stored[0]] == ["0x3f80", "0x3f82", "0x7fc0", "0x7f80"]
