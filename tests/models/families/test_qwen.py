"""Qwen2, Qwen3 and Qwen3-MoE: biases, norms of heads, experts in both forms, refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import block_of, random_values, write_checkpoint
from qwen_checkpoints import QWEN2, QWEN3, QWEN3_MOE, merged_experts, qwen_arrays, write_qwen

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.families.registry import family_for
from quantkit.models.geometry import geometry_of
from quantkit.models.transformers_reader import config_with_defaults

ATTENTION = ["attn_q", "attn_k", "attn_v", "attn_output"]
DENSE = ["ffn_norm", "ffn_gate", "ffn_up", "ffn_down"]
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


WINDOW = {"use_sliding_window": True, "sliding_window": 4096}
"""Shorter than the context."""


def _rope(scaling: dict[str, Any] | None = None, **changes: object) -> dict[str, Any]:
    return {"rope_scaling": (scaling or {}) | changes}


def metadata_of(config: dict[str, Any], **changes: object) -> Metadata:
    config = config_with_defaults(config | changes)
    return family_for(config).metadata(config)


def test_qwen2_has_biases_on_query_key_and_value(tmp_path: Path) -> None:
    source, arrays = open_checkpoint(write_qwen(tmp_path / "m", QWEN2)), qwen_arrays(QWEN2)
    assert list(block_of(source, 1)) == [
        "attn_norm.weight",
        *(f"attn_{letter}.{kind}" for letter in "qkv" for kind in ("weight", "bias")),
        "attn_output.weight",
        *(f"{name}.weight" for name in DENSE),
    ]
    for letter, width in (("q", 32), ("k", 16), ("v", 16)):
        stored = arrays[f"model.layers.1.self_attn.{letter}_proj.bias"]
        bias = source.read_rows(f"blk.1.attn_{letter}.bias", 0, 1)[0]
        np.testing.assert_array_equal(bias, stored)
        assert bias.shape == (width,)
    assert block_of(source, 0)["attn_q.weight"] == ((32, 32), "BF16")
    assert block_of(source, 0)["attn_q.bias"] == ((32,), "F32")


@pytest.mark.parametrize("config", [QWEN2, QWEN3, QWEN3_MOE])
def test_rows_stay_where_they_are(tmp_path: Path, config: dict[str, Any]) -> None:
    source, arrays = open_checkpoint(write_qwen(tmp_path / "m", config)), qwen_arrays(config)
    for letter in "qk":
        stored = arrays[f"model.layers.0.self_attn.{letter}_proj.weight"]
        rows = source.read_rows(f"blk.0.attn_{letter}.weight", 0, stored.shape[0])
        np.testing.assert_array_equal(rows, stored)


def test_qwen3_normalises_each_head(tmp_path: Path) -> None:
    source = open_checkpoint(write_qwen(tmp_path / "m", QWEN3, tie_word_embeddings=False))
    assert list(block_of(source, 1)) == [
        f"{name}.weight" for name in ("attn_norm", *ATTENTION, "attn_q_norm", "attn_k_norm", *DENSE)
    ]
    block = block_of(source, 0)
    assert block["attn_q.weight"] == ((64, 32), "BF16")
    assert block["attn_output.weight"] == ((32, 64), "BF16")
    assert block["attn_q_norm.weight"] == ((16,), "F32")
    assert source.tensors[-1] == TensorInfo("output.weight", (320, 32), "BF16")
    stored = qwen_arrays(QWEN3)["model.layers.1.self_attn.k_norm.weight"]
    rows = source.read_rows("blk.1.attn_k_norm.weight", 0, 1)
    np.testing.assert_array_equal(rows, stored[None])


def test_qwen3_has_heads_of_128_where_nothing_is_said(tmp_path: Path) -> None:
    silent = {key: value for key, value in QWEN3.items() if key != "head_dim"}
    folder = write_checkpoint(tmp_path / "m", silent, qwen_arrays(QWEN3 | {"head_dim": 128}))
    source = open_checkpoint(folder)
    assert source.metadata["qwen3.attention.key_length"].value == 128
    assert source.tensors[2].shape == (512, 32)


def test_qwen3_may_have_the_biases_that_llama_cpp_reads(tmp_path: Path) -> None:
    biased, arrays = QWEN3 | {"attention_bias": True}, qwen_arrays(QWEN3)
    for index in range(2):
        arrays[f"model.layers.{index}.self_attn.v_proj.bias"] = random_values(index, 32)
    source = open_checkpoint(write_checkpoint(tmp_path / "m", biased, arrays))
    assert "blk.0.attn_v.bias" in [tensor.name for tensor in source.tensors]
    arrays["model.layers.0.self_attn.o_proj.bias"] = random_values(2, 32)
    with pytest.raises(InputError, match=r"self_attn\.o_proj\.bias.* query, key and value only"):
        open_checkpoint(write_checkpoint(tmp_path / "n", biased, arrays))


def test_a_multimodal_checkpoint_is_told_by_its_prefix(tmp_path: Path) -> None:
    prefix = "model.language_model."
    arrays = {k.replace("model.", prefix): v for k, v in qwen_arrays(QWEN2).items()}
    arrays["model.visual.blocks.0.attn.qkv.bias"] = random_values(0, 32)
    with pytest.raises(InputError, match=f"'{prefix}'"):
        open_checkpoint(write_checkpoint(tmp_path / "m", QWEN2, arrays))


def test_experts_are_stacked(tmp_path: Path) -> None:
    source = open_checkpoint(write_qwen(tmp_path / "m", QWEN3_MOE, shards=3))
    assert list(block_of(source, 1))[-5:] == [
        f"ffn_{name}.weight" for name in ("norm", "gate_inp", "gate_exps", "up_exps", "down_exps")
    ]
    block = block_of(source, 1)
    assert block["ffn_gate_inp.weight"] == ((4, 32), "F32")
    assert block["ffn_gate_exps.weight"] == ((4, 24, 32), "BF16")
    assert block["ffn_down_exps.weight"] == ((4, 32, 24), "BF16")
    third = qwen_arrays(QWEN3_MOE)["model.layers.1.mlp.experts.2.up_proj.weight"]
    np.testing.assert_array_equal(source.read_rows("blk.1.ffn_up_exps.weight", 48, 72), third)


@pytest.mark.parametrize("ending", ["", ".weight"])
def test_merged_experts_are_the_same_model(tmp_path: Path, ending: str) -> None:
    arrays = qwen_arrays(QWEN3_MOE)
    apart = open_checkpoint(write_checkpoint(tmp_path / "m", QWEN3_MOE, arrays))
    merged = open_checkpoint(
        write_checkpoint(tmp_path / "n", QWEN3_MOE, merged_experts(arrays, QWEN3_MOE, ending))
    )
    assert merged.tensors == apart.tensors
    for info in apart.tensors:
        for start, stop in ((0, info.rows), (info.rows // 3, info.rows // 3 + 1)):
            wanted = apart.read_rows(info.name, start, stop)
            np.testing.assert_array_equal(merged.read_rows(info.name, start, stop), wanted)
            np.testing.assert_array_equal(
                merged.read_stored(info.name, start, stop),
                apart.read_stored(info.name, start, stop),
            )


def test_merged_experts_the_other_way_round_are_refused(tmp_path: Path) -> None:
    """Qwen3-VL's mixtures hold the transposed matrices."""
    arrays = merged_experts(qwen_arrays(QWEN3_MOE), QWEN3_MOE)
    for name in list(arrays):
        if ".mlp.experts." in name:
            arrays[name] = np.ascontiguousarray(arrays[name].swapaxes(1, 2))
    folder = write_checkpoint(tmp_path / "m", QWEN3_MOE, arrays)
    with pytest.raises(InputError, match=r"gate_up_proj has shape \[4, 32, 48\]"):
        open_checkpoint(folder)


def test_metadata_of_each_architecture() -> None:
    qwen2 = metadata_of(QWEN2)
    assert qwen2["general.architecture"].value == "qwen2"
    assert qwen2["qwen2.rope.freq_base"].value == 1000000.0
    assert "qwen2.attention.key_length" not in qwen2
    qwen3 = metadata_of(QWEN3)
    assert qwen3["qwen3.attention.key_length"].value == 16
    assert qwen3["qwen3.feed_forward_length"].value == 64
    mixture = metadata_of(QWEN3_MOE)
    assert mixture["general.architecture"].value == "qwen3moe"
    assert {key: mixture[f"qwen3moe.expert_{key}"].value for key in ("count", "used_count")} == {
        "count": 4,
        "used_count": 2,
    }
    assert mixture["qwen3moe.expert_feed_forward_length"].value == 24
    renamed = {key: value for key, value in QWEN3_MOE.items() if key != "num_experts"}
    assert metadata_of(renamed, num_local_experts=4) == mixture


@pytest.mark.parametrize(
    ("config", "key_elements", "activations"), [(QWEN2, 16, 128), (QWEN3_MOE, 32, 128)]
)
def test_memory_geometry(
    tmp_path: Path, config: dict[str, Any], key_elements: int, activations: int
) -> None:
    geometry = geometry_of(open_checkpoint(write_qwen(tmp_path / "m", config)).metadata)
    assert [(g.key_elements, g.value_elements, g.recurrent_elements) for g in geometry.layers] == [
        (key_elements, key_elements, 0)
    ] * 2
    assert geometry.activation_elements == activations
    assert (geometry.vocabulary, geometry.trained_context_tokens) == (320, 32768)


def test_yarn_is_metadata() -> None:
    metadata = metadata_of(QWEN2, rope_scaling=YARN)
    assert metadata["qwen2.rope.scaling.type"].value == "yarn"
    assert metadata["qwen2.rope.scaling.factor"].value == 4.0
    usual = YARN | {"beta_fast": 32, "beta_slow": 1.0, "attention_factor": 1.1386294361119891}
    assert "qwen2.rope.scaling.yarn_beta_fast" in metadata_of(QWEN2, rope_scaling=usual)


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (QWEN2, {"use_sliding_window": False, "sliding_window": 4096}),
        (QWEN2, {"sliding_window": 32768}),
        (QWEN2, {"sliding_window": 4096, "max_window_layers": 2}),
        (QWEN2, {"sliding_window": 4096, "layer_types": ["full_attention"] * 2}),
        (QWEN3, {"sliding_window": 4096, "max_window_layers": 28}),
        (QWEN3_MOE, {"sliding_window": None}),
    ],
)
def test_a_window_that_changes_nothing_is_accepted(
    config: dict[str, Any], changes: dict[str, Any]
) -> None:
    changes = {"use_sliding_window": True} | changes
    plain = metadata_of(config, use_sliding_window=False, sliding_window=None)
    assert metadata_of(config, **changes) == plain


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (QWEN3, _rope(YARN, beta_fast=16), "beta_fast 16 instead of 32"),
        (QWEN3, _rope(YARN, attention_factor=1.0), r"attention_factor 1.0 instead of 1\.139"),
        (QWEN3, _rope(YARN, truncate=False), "truncate false"),
        (QWEN3, _rope(YARN, mscale=0.7, mscale_all_dim=0.7), r"mscale 0\.7"),
        (QWEN3, _rope(rope_type="llama3", factor=8.0), "'llama3', which llama.cpp does not read"),
        (QWEN3, _rope(type="default", mrope_section=[16, 24]), r"mrope_section \[16, 24\]"),
        (QWEN3, _rope(type="dynamic", factor=2.0), "'dynamic' is not supported"),
        (QWEN2, WINDOW, "1 layers from layer 1 on .* of 4096 tokens of 32768.*set use_sliding"),
        (QWEN3, WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}, "layer 0 on"),
        (QWEN3_MOE, WINDOW, "2 layers from layer 0 on"),
        (QWEN2, {"head_dim": 16}, "4 heads of 16 are not the hidden_size 32"),
        (QWEN3, {"_name_or_path": "Qwen/Qwen3-Reranker-0.6B"}, "'Qwen/Qwen3-Reranker-0.6B', a"),
        (QWEN3, {"architectures": ["Qwen3ForSequenceClassification"]}, "Any GGUF file is accepted"),
        (QWEN3_MOE, {"norm_topk_prob": False}, "norm_topk_prob is False.*set it to true"),
        (QWEN3_MOE, {"norm_topk_prob": None}, "norm_topk_prob is None"),
        (QWEN3_MOE, {"num_experts_per_tok": 5}, "num_experts_per_tok is 5, but there are only 4"),
        (QWEN3_MOE, {"num_experts": 0}, "num_experts is 0, expected a positive"),
        (QWEN3_MOE, {"mlp_only_layers": [1]}, r"makes layers \[1\] dense, but llama\.cpp loads"),
        (QWEN3_MOE, {"mlp_only_layers": 1}, "mlp_only_layers is 1, expected a list"),
        (QWEN3_MOE, {"decoder_sparse_step": 2}, "decoder_sparse_step is 2, so layer 0"),
    ],
)
def test_refused_configurations(
    config: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        metadata_of(config, **changes)


def test_a_dense_layer_is_refused_before_its_tensors_are_missed(tmp_path: Path) -> None:
    folder = write_qwen(tmp_path / "m", QWEN3_MOE, mlp_only_layers=[0, 7])
    with pytest.raises(InputError, match=r"makes layers \[0\] dense"):
        open_checkpoint(folder)


def test_an_embedding_model_without_prefix_is_refused(tmp_path: Path) -> None:
    bare = {name.removeprefix("model."): v for name, v in qwen_arrays(QWEN3).items()}
    folder = write_checkpoint(tmp_path / "m", QWEN3, bare)
    with pytest.raises(InputError, match=r"lack the prefix 'model\.'.*embedding model"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("config", "missing"),
    [
        (QWEN3, "model.layers.1.self_attn.q_norm.weight"),
        (QWEN3_MOE, "model.layers.1.mlp.gate.weight"),
        (QWEN3_MOE, "model.layers.0.mlp.experts.3.down_proj.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, config: dict[str, Any], missing: str) -> None:
    arrays = qwen_arrays(config)
    del arrays[missing]
    folder = write_checkpoint(tmp_path / "m", config, arrays)
    with pytest.raises(InputError, match=f"no tensor {missing}"):
        open_checkpoint(folder)
