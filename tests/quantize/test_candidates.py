"""Which tensors are quantized, and at which types."""

from __future__ import annotations

import pytest

from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.quantize.candidates import admissible, is_quantizable, nearest_type

EMBEDDING = TensorInfo("token_embd.weight", (64, 256), "BF16")
EXPERTS = TensorInfo("blk.1.ffn_down_exps.weight", (8, 256, 288), "BF16")


def test_types_that_need_statistics_only_with_them() -> None:
    names = tuple(name for name, kind in BY_NAME.items() if kind.is_quantized)
    allowed = {kind.name for kind in admissible(EMBEDDING, False, names)}
    assert allowed == {
        kind.name for kind in admissible(EMBEDDING, True, names) if not kind.needs_imatrix
    }
    assert not allowed & {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_S", "IQ1_M"}


def test_types_that_divide_the_row() -> None:
    found = {kind.name for kind in admissible(EXPERTS, True, STOCK_CANDIDATES)}
    assert found == {"Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL", "MXFP4"}


@pytest.mark.parametrize(
    ("name", "quantized"),
    [
        ("blk.0.attn_q.weight", True),
        ("token_embd.weight", True),
        ("blk.0.ffn_latent_down.weight", True),
        ("blk.0.attn_norm.weight", False),
        ("blk.0.ffn_gate_inp.weight", False),
        ("blk.0.ssm_conv1d.weight", False),
        ("blk.0.ssm_a", False),
    ],
)
def test_what_llama_cpp_keeps_is_kept(name: str, quantized: bool) -> None:
    assert is_quantizable(TensorInfo(name, (64, 256), "BF16")) is quantized


@pytest.mark.parametrize(
    ("names", "bits", "expected"),
    [
        (("Q8_0", "Q4_K", "Q2_K"), 3.0, "Q2_K"),
        (("Q8_0", "Q4_K", "Q2_K"), 4.5, "Q4_K"),
        (("Q8_0", "Q5_1", "IQ4_NL"), 3.0, "IQ4_NL"),
        (("Q5_0", "IQ4_NL"), 5.0, "IQ4_NL"),
    ],
)
def test_the_nearest_type(names: tuple[str, ...], bits: float, expected: str) -> None:
    assert nearest_type(names, bits) == expected
