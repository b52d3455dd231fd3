"""The table of types against gguf's own."""

from __future__ import annotations

import gguf
import pytest

from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import BY_NAME, quant_type


@pytest.mark.parametrize("name", sorted(BY_NAME))
def test_table_equals_gguf(name: str) -> None:
    kind = BY_NAME[name]
    theirs = gguf.GGMLQuantizationType[name]
    assert kind.ggml_id == theirs.value
    assert (kind.block_elements, kind.block_bytes) == gguf.GGML_QUANT_SIZES[theirs]


def test_flagship_row_rules_out_k_quants() -> None:
    assert not BY_NAME["Q4_K"].fits_row(2688)
    assert BY_NAME["IQ4_NL"].fits_row(2688)
    assert BY_NAME["Q5_0"].bits_per_weight == 5.5


def test_unknown_type_lists_the_known() -> None:
    with pytest.raises(InputError, match="Q4_K"):
        quant_type("Q9_Z")
