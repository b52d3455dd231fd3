"""Granite 4: both kinds of layers, experts and none, what is split, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import block_of, write_checkpoint
from granite_checkpoints import (
    ATTENTION,
    DENSE,
    GRANITE,
    ROPE,
    granite_arrays,
    granite_shapes,
    write_granite,
)

from quantkit.core.errors import InputError
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.families.base import StoredTensor
from quantkit.models.families.granite_hybrid import GraniteHybrid
from quantkit.models.families.rope import rotary_row_order
from quantkit.models.transformers_reader import config_with_defaults

FFN = {
    "ffn_norm.weight": ((32,), "F32"),
    "ffn_gate_inp.weight": ((4, 32), "F32"),
    "ffn_gate_exps.weight": ((4, 24, 32), "BF16"),
    "ffn_up_exps.weight": ((4, 24, 32), "BF16"),
    "ffn_down_exps.weight": ((4, 32, 24), "BF16"),
    "ffn_gate_shexp.weight": ((20, 32), "BF16"),
    "ffn_up_shexp.weight": ((20, 32), "BF16"),
    "ffn_down_shexp.weight": ((32, 20), "BF16"),
}


def _values(**changes: object) -> dict[str, object]:
    """Metadata values without the architecture's prefix."""
    metadata = GraniteHybrid().metadata(config_with_defaults(GRANITE | changes))
    prefix = f"{metadata['general.architecture'].value}."
    return {key.removeprefix(prefix): value.value for key, value in metadata.items()}


def test_a_mamba_layer_and_its_experts(tmp_path: Path) -> None:
    source = open_checkpoint(write_granite(tmp_path / "m"))
    assert source.tensors[0].name == "token_embd.weight"
    assert source.tensors[-1].name == "output_norm.weight"
    assert block_of(source, 0) == FFN | {
        "attn_norm.weight": ((32,), "F32"),
        "ssm_in.weight": ((164, 32), "BF16"),
        "ssm_conv1d.weight": ((96, 4), "F32"),
        "ssm_conv1d.bias": ((96,), "F32"),
        "ssm_dt.bias": ((4,), "F32"),
        "ssm_a": ((4, 1), "F32"),
        "ssm_d": ((4, 1), "F32"),
        "ssm_norm.weight": ((1, 64), "F32"),
        "ssm_out.weight": ((32, 64), "BF16"),
    }


def test_an_attention_layer_and_its_experts(tmp_path: Path) -> None:
    source = open_checkpoint(write_granite(tmp_path / "m"))
    assert block_of(source, 1) == FFN | {
        "attn_norm.weight": ((32,), "F32"),
        "attn_q.weight": ((32, 32), "BF16"),
        "attn_k.weight": ((16, 32), "BF16"),
        "attn_v.weight": ((16, 32), "BF16"),
        "attn_output.weight": ((32, 32), "BF16"),
    }
    stored = granite_arrays(GRANITE)["model.layers.1.self_attn.k_proj.weight"]
    read = source.read_rows("blk.1.attn_k.weight", 0, 16)
    np.testing.assert_array_equal(read, stored[rotary_row_order(2, 8)])


def test_gate_and_up_of_the_experts_are_split(tmp_path: Path) -> None:
    source = open_checkpoint(write_granite(tmp_path / "m"))
    arrays = granite_arrays(GRANITE)
    fused = arrays["model.layers.0.block_sparse_moe.input_linear.weight"]
    for name, half in (("gate", fused[:, :24]), ("up", fused[:, 24:])):
        read = source.read_rows(f"blk.0.ffn_{name}_exps.weight", 0, 4 * 24)
        np.testing.assert_array_equal(read.reshape(4, 24, 32), half)
        part = source.read_rows(f"blk.0.ffn_{name}_exps.weight", 23, 26)
        np.testing.assert_array_equal(part, half.reshape(-1, 32)[23:26])
    shared = arrays["model.layers.0.shared_mlp.input_linear.weight"]
    for name, half in (("gate", shared[:20]), ("up", shared[20:])):
        read = source.read_rows(f"blk.0.ffn_{name}_shexp.weight", 0, 20)
        np.testing.assert_array_equal(read, half)


def test_without_experts_the_shared_mlp_is_the_ffn(tmp_path: Path) -> None:
    source = open_checkpoint(write_granite(tmp_path / "m", **DENSE))
    assert {n: s for n, s in block_of(source, 2).items() if n.startswith("ffn")} == {
        "ffn_norm.weight": ((32,), "F32"),
        "ffn_gate.weight": ((20, 32), "BF16"),
        "ffn_up.weight": ((20, 32), "BF16"),
        "ffn_down.weight": ((32, 20), "BF16"),
    }
    stored = granite_arrays(GRANITE | DENSE)["model.layers.2.shared_mlp.input_linear.weight"]
    np.testing.assert_array_equal(source.read_rows("blk.2.ffn_up.weight", 0, 20), stored[20:])
    assert source.metadata["general.architecture"].value == "granitehybrid"
    assert source.metadata["granitehybrid.expert_count"].value == 0


def test_untied_embeddings_and_biases(tmp_path: Path) -> None:
    config = GRANITE | {"tie_word_embeddings": False, "attention_bias": True}
    arrays = granite_arrays(config)
    for letter, width in (("q", 32), ("k", 16), ("v", 16), ("o", 32)):
        arrays[f"model.layers.1.self_attn.{letter}_proj.bias"] = np.arange(width, dtype=np.float32)
    source = open_checkpoint(write_checkpoint(tmp_path / "m", config, arrays))
    assert source.tensors[-1].name == "output.weight"
    assert source.read_rows("blk.1.attn_k.bias", 0, 1)[0].tolist() == [
        *(0, 4, 1, 5, 2, 6, 3, 7),
        *(8, 12, 9, 13, 10, 14, 11, 15),
    ]
    assert block_of(source, 1)["attn_output.bias"] == ((32,), "F32")


def test_metadata_of_a_hybrid() -> None:
    values = _values()
    assert values["general.architecture"] == "granitehybrid"
    assert values["block_count"] == 3
    assert values["context_length"] == 1 << 20
    assert values["rope.scaling.finetuned"] is False
    assert values["rope.dimension_count"] == 8
    assert values["rope.freq_base"] == 10000.0
    assert values["attention.head_count"] == 4
    assert values["attention.head_count_kv"] == (0, 2, 0)
    assert values["attention.scale"] == 0.015625
    assert values["embedding_scale"] == 12.0
    assert values["residual_scale"] == float(np.float32(0.22))
    assert values["logit_scale"] == 6.0
    assert (values["expert_count"], values["expert_used_count"]) == (4, 2)
    assert values["feed_forward_length"] == 24
    assert values["expert_shared_feed_forward_length"] == 20
    assert {key: value for key, value in values.items() if key.startswith("ssm.")} == {
        "ssm.conv_kernel": 4,
        "ssm.state_size": 16,
        "ssm.group_count": 1,
        "ssm.inner_size": 64,
        "ssm.time_step_rank": 4,
    }
    assert "attention.key_length" not in values


def test_models_of_attention_alone_are_other_architectures(tmp_path: Path) -> None:
    mixture = _values(layer_types=ATTENTION, **ROPE)
    assert mixture["general.architecture"] == "granitemoe"
    assert mixture["rope.scaling.finetuned"] is True
    assert mixture["context_length"] == 131072
    assert mixture["attention.head_count_kv"] == (2, 2, 2)
    source = open_checkpoint(write_granite(tmp_path / "m", layer_types=ATTENTION, **ROPE, **DENSE))
    assert source.metadata["general.architecture"].value == "granite"
    assert not [t.name for t in source.tensors if "ssm" in t.name or "exp" in t.name]


def test_a_mixer_that_is_not_there_may_not_fit(tmp_path: Path) -> None:
    """Models of attention alone keep settings of one; nothing is made of them but keys."""
    left_over = {"mamba_n_heads": 5, "mamba_d_head": 7, "mamba_expand": 3}
    changes = DENSE | ROPE | left_over | {"layer_types": ATTENTION}
    source = open_checkpoint(write_granite(tmp_path / "m", **changes))
    assert source.metadata["granite.ssm.inner_size"].value == 96
    assert source.metadata["granite.ssm.time_step_rank"].value == 5


@pytest.mark.parametrize("key", ["layer_types", "layers_block_type"])
def test_layers_as_transformers_5_names_them(key: str) -> None:
    config = {k: v for k, v in GRANITE.items() if k != "layer_types"}
    config[key] = ["linear_attention", "full_attention", "linear_attention"]
    assert GraniteHybrid().metadata(config) == GraniteHybrid().metadata(GRANITE)


def test_rotation_is_what_the_configuration_says() -> None:
    hybrid = _values(**ROPE)
    assert hybrid["rope.scaling.finetuned"] is True
    assert hybrid["context_length"] == 131072
    dense = _values(layer_types=ATTENTION, **DENSE)
    assert dense["general.architecture"] == "granite"
    assert dense["rope.scaling.finetuned"] is False


def test_a_dense_model_uses_no_experts_and_is_as_wide_as_its_mlp() -> None:
    """transformers writes 2 experts a token, and its own default width, into such a config.json."""
    values = _values(num_local_experts=0, num_experts_per_tok=2, intermediate_size=11008)
    assert values["expert_used_count"] == 0
    assert values["feed_forward_length"] == 20


def test_scales_that_are_left_out_are_those_of_transformers() -> None:
    less = {k: v for k, v in GRANITE.items() if k not in ("attention_multiplier", "logits_scaling")}
    values = GraniteHybrid().metadata(config_with_defaults(less))
    assert values["granitehybrid.attention.scale"].value == 1.0
    assert values["granitehybrid.logit_scale"].value == 1.0


def test_a_head_dimension_of_its_own(tmp_path: Path) -> None:
    source = open_checkpoint(write_granite(tmp_path / "m", head_dim=16))
    assert source.metadata["granitehybrid.attention.key_length"].value == 16
    assert source.metadata["granitehybrid.rope.dimension_count"].value == 16
    assert block_of(source, 1)["attn_q.weight"] == ((64, 32), "BF16")
    assert "attention.key_length" not in _values(head_dim=8)


def test_a_vocabulary_is_not_padded_beyond_its_embeddings(tmp_path: Path) -> None:
    """llama.cpp's converter pads the tokens of hybrids to a multiple of 8, and llama.cpp then
    refuses the file, because the embeddings have fewer rows."""
    source = open_checkpoint(write_granite(tmp_path / "m", vocab_size=317))
    tokens = source.metadata["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert len(tokens) == 317 == source.tensors[0].shape[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mamba_expand": 4, "mamba_d_head": 32}, r"mamba_expand is 4.*expansion factor of 2"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is set"),
        ({"mamba_conv_bias": False}, "mamba_conv_bias is false"),
        ({"mamba_d_head": 8}, "mamba_d_head is 8, but .* is 16"),
        ({"mamba_n_heads": 5}, "is 64, which does not divide into mamba_n_heads, 5"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but there are only 4"),
        ({"layer_types": ATTENTION}, "position_embedding_type is 'nope'.*no file"),
        ({"layer_types": ["mamba"] * 3}, "all 3 layers .* without attention"),
        ({"layer_types": None}, "lacks layer_types"),
        ({"layer_types": ["mamba", "mlp", "moe"]}, "kind mlp, moe are not supported"),
        ({"layer_types": ["mamba", "attention"]}, "names 2 layers, but num_hidden_layers is 3"),
        ({"mamba_n_groups": 0}, "mamba_n_groups is 0"),
        ({"shared_intermediate_size": None}, "lacks shared_intermediate_size"),
        ({"residual_multiplier": "big"}, "residual_multiplier is 'big'"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GraniteHybrid().metadata(GRANITE | change)


def test_other_shapes_and_unknown_tensors_are_refused(tmp_path: Path) -> None:
    whole = granite_arrays(GRANITE)
    bias = "model.layers.0.mamba.conv1d.bias"
    without = {name: values for name, values in whole.items() if name != bias}
    more = whole | {"model.layers.0.mamba.in_proj.bias": whole["model.norm.weight"]}
    for config, arrays, message in (
        (GRANITE | {"intermediate_size": 48}, whole, r"input_linear.*\[4, 48, 32\].*\[4, 96, 32\]"),
        (GRANITE, without, r"no tensor .*conv1d\.bias"),
        (GRANITE, more, r"unknown.*mamba\.in_proj\.bias"),
    ):
        with pytest.raises(InputError, match=message):
            open_checkpoint(write_checkpoint(tmp_path / "m", config, arrays))


@pytest.mark.parametrize(
    ("numbers", "billions"),
    [
        ((1536, 48, 12, 4, 64, 6, 512, 1024), 6.94),  # granite-4.0-h-tiny
        ((4096, 128, 32, 8, 72, 10, 768, 1536), 32.21),  # granite-4.0-h-small
    ],
    ids=["tiny", "small"],
)
def test_the_sizes_of_ibms_releases(numbers: tuple[int, ...], billions: float) -> None:
    keys = (
        "hidden_size", "mamba_n_heads", "num_attention_heads", "num_key_value_heads",
        "num_local_experts", "num_experts_per_tok", "intermediate_size", "shared_intermediate_size",
    )  # fmt: skip
    config = GRANITE | {
        "num_hidden_layers": 40,
        "layer_types": ["attention" if i % 10 == 5 else "mamba" for i in range(40)],
        "vocab_size": 100352,
        "mamba_d_head": 64,
        "mamba_d_state": 128,
        **dict(zip(keys, numbers, strict=True)),
    }
    stored = {n: StoredTensor(s, "BF16") for n, s in granite_shapes(config).items()}
    infos = [rule.info for rule in GraniteHybrid().rules(config, stored)]
    assert round(sum(info.elements for info in infos) / 1e9, 2) == billions
