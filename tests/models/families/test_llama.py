"""Llama and Mistral: rotary layout, tied embeddings, rope scaling in both spellings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import LLAMA, LLAMA3_ROPE, llama_arrays, write_checkpoint, write_llama

from quantkit.core.errors import InputError
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.families.base import StoredTensor
from quantkit.models.families.llama import Llama
from quantkit.models.families.rope import llama3_frequency_factors


def test_tied_embeddings_have_no_output(tmp_path: Path) -> None:
    source = open_checkpoint(write_llama(tmp_path / "m"))
    assert "output.weight" not in [t.name for t in source.tensors]
    names = "attn_norm attn_q attn_k attn_v attn_output ffn_norm ffn_gate ffn_up ffn_down".split()
    assert [t.name for t in source.tensors if t.name.startswith("blk.1.")] == [
        f"blk.1.{name}.weight" for name in names
    ]


def test_untied_embeddings_and_a_head_dimension_of_its_own(tmp_path: Path) -> None:
    source = open_checkpoint(write_llama(tmp_path / "m", tie_word_embeddings=False, head_dim=16))
    shapes = {t.name: t.shape for t in source.tensors}
    assert shapes["output.weight"] == (320, 32)
    assert shapes["blk.0.attn_q.weight"] == (64, 32)
    assert shapes["blk.0.attn_output.weight"] == (32, 64)
    assert source.metadata["llama.rope.dimension_count"].value == 16
    assert source.metadata["llama.attention.key_length"].value == 16


def test_biases_are_permuted_like_their_matrix(tmp_path: Path) -> None:
    arrays = llama_arrays(LLAMA)
    for index in range(2):
        for letter, width in (("q", 32), ("k", 16), ("v", 16)):
            bias = np.arange(width, dtype=np.float32)
            arrays[f"model.layers.{index}.self_attn.{letter}_proj.bias"] = bias
    biased = LLAMA | {"attention_bias": True}
    source = open_checkpoint(write_checkpoint(tmp_path / "m", biased, arrays))
    assert source.read_rows("blk.0.attn_k.bias", 0, 1).tolist() == [
        [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15]
    ]
    assert source.read_rows("blk.0.attn_v.bias", 0, 1).tolist() == [list(range(16))]
    assert source.read_rows("blk.0.attn_k.bias", 0, 0).shape == (0, 16)


SCALING = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 500000.0, "rope_scaling": SCALING},
        {"rope_theta": None, "rope_parameters": LLAMA3_ROPE},
        {"rope_theta": 500000.0, "rope_scaling": SCALING | {"type": "llama3"}},
    ],
)
def test_rope_in_both_spellings(tmp_path: Path, spelling: dict[str, Any]) -> None:
    source = open_checkpoint(write_llama(tmp_path / "m", **spelling))
    assert source.metadata["llama.rope.freq_base"].value == 500000.0
    info = source.tensors[0]
    assert (info.name, info.shape, info.type_name) == ("rope_freqs.weight", (4,), "F32")
    factors = source.read_rows("rope_freqs.weight", 0, 1)[0]
    assert factors[0] == 1.0
    assert factors[-1] == 8.0


def test_llama3_factors_are_interpolated_between_the_two_wavelengths() -> None:
    factors = llama3_frequency_factors(LLAMA3_ROPE, 128)
    assert factors.shape == (64,)
    assert np.all(np.diff(factors) >= 0)
    between = factors[(factors > 1) & (factors < 8)]
    wavelength = 2 * np.pi * 500000.0 ** (np.arange(64) / 64)
    expected = wavelength[(wavelength > 2048) & (wavelength < 8192)]
    smooth = (8192 / expected - 1) / 3
    np.testing.assert_allclose(between, 1 / ((1 - smooth) / 8 + smooth), rtol=1e-5)


def test_linear_and_yarn_scaling_are_metadata() -> None:
    linear = Llama().metadata(LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}})
    assert linear["llama.rope.scaling.type"].value == "linear"
    assert linear["llama.rope.scaling.factor"].value == 4.0
    yarn = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 4096}
    metadata = Llama().metadata(LLAMA | {"rope_scaling": yarn | {"beta_fast": 32}})
    assert metadata["llama.rope.scaling.original_context_length"].value == 4096
    assert metadata["llama.rope.scaling.yarn_beta_fast"].value == 32.0


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="32 does not divide into 5 heads"):
        Llama().metadata(LLAMA | {"num_attention_heads": 5})


@pytest.mark.parametrize(
    "changes",
    [
        {"num_attention_heads": 1 << 30, "head_dim": 1 << 30},
        {"num_key_value_heads": 1 << 30, "head_dim": 1 << 30},
        {"rope_parameters": LLAMA3_ROPE, "head_dim": (1 << 31) - 1},
        {"vocab_size": 1 << 30},
    ],
)
def test_nothing_is_made_for_counts_that_the_weights_lack(changes: dict[str, Any]) -> None:
    stored = {name: StoredTensor(a.shape, "BF16") for name, a in llama_arrays(LLAMA).items()}
    with pytest.raises(InputError):
        Llama().rules(LLAMA | changes, stored)


def test_heads_of_an_odd_size_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="odd"):
        open_checkpoint(write_llama(tmp_path / "m", head_dim=9))
