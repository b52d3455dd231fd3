"""NVIDIA Nemotron-H: Mamba-2, attention without rotary embedding, and MLP or (latent) MoE layers.

GGUF architectures `nemotron_h` (dense MLP layers) and `nemotron_h_moe`.
tests/families/test_against_llama_cpp.py holds the result equal to that of llama.cpp's converter run
with `--no-mtp --outtype bf16`.

The multi-token prediction head (`mtp.*`) is dropped for now, and `nextn_predict_layers` is not
written: inference without speculative decoding does not use it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.families.base import (
    FILE_TYPE_BF16,
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    config_float,
    config_int,
    meta,
    rotary_row_order,
)
from quantkit.families.nemotron_sizes import NemotronSizes, nemotron_sizes
from quantkit.values import Metadata

CONTEXT_LENGTH = 1 << 20
"""What the GGUF says, whatever config.json does: there is no rotary embedding, so no position
limits the model, and llama-server would cap a slot at the 262144 of Nemotron-3-Super's
`max_position_embeddings` though it was trained to 1M. llama.cpp's converter writes the same."""


class NemotronH:
    """NemotronHForCausalLM in both spellings of its layers."""

    architectures = ("NemotronHForCausalLM",)

    def metadata(self, config: Config) -> Metadata:
        g = nemotron_sizes(config)
        arch = "nemotron_h_moe" if g.is_moe else "nemotron_h"
        feed_forward = config_int(
            config, "moe_intermediate_size" if g.is_moe else "intermediate_size"
        )
        keys: Metadata = {
            "block_count": meta("u32", len(g.layers)),
            "context_length": meta("u32", CONTEXT_LENGTH),
            "embedding_length": meta("u32", g.hidden),
            # llama.cpp tells the kinds of layers apart by these two: Mamba has neither.
            "feed_forward_length": meta(
                "i32", [feed_forward if kind in ("moe", "mlp") else 0 for kind in g.layers]
            ),
            "attention.head_count": meta("u32", g.heads),
            "attention.head_count_kv": meta(
                "i32", [g.kv_heads if kind == "attention" else 0 for kind in g.layers]
            ),
            "attention.layer_norm_epsilon": meta("f32", _epsilon(config)),
            "attention.key_length": meta("u32", g.head_dim),
            "attention.value_length": meta("u32", g.head_dim),
            "vocab_size": meta("u32", g.vocabulary),
            "rope.dimension_count": meta("u32", g.hidden // g.heads),
            "rope.scaling.finetuned": meta("bool", False),
            "ssm.conv_kernel": meta("u32", g.conv_kernel),
            "ssm.state_size": meta("u32", g.ssm_state),
            "ssm.group_count": meta("u32", g.ssm_groups),
            "ssm.inner_size": meta("u32", g.ssm_inner),
            "ssm.time_step_rank": meta("u32", g.ssm_heads),
        }
        if config.get("norm_eps", config.get("rms_norm_eps")) is not None:
            epsilon = config_float(config, "rms_norm_eps", "norm_eps")
            keys["attention.layer_norm_rms_epsilon"] = meta("f32", epsilon)
        if config.get("rope_theta") is not None:
            keys["rope.freq_base"] = meta("f32", config_float(config, "rope_theta"))
        if g.is_moe:
            keys |= _expert_keys(config)
        return {
            "general.architecture": meta("str", arch),
            "general.file_type": meta("u32", FILE_TYPE_BF16),
        } | {f"{arch}.{key}": value for key, value in keys.items()}

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        g = nemotron_sizes(config)
        rules = Rules(stored)
        # NVIDIA and transformers write backbone.*, PEFT and some fine-tunes model.*.
        root = "model" if rules.has("model.embeddings.weight") else "backbone"
        rules.add("token_embd.weight", f"{root}.embeddings.weight", (g.vocabulary, g.hidden))
        for index, kind in enumerate(g.layers):
            block, layer = f"blk.{index}.", f"{root}.layers.{index}."
            rules.add(f"{block}attn_norm.weight", f"{layer}norm.weight", (g.hidden,))
            match kind:
                case "mamba":
                    _add_mamba(rules, g, block, f"{layer}mixer.")
                case "attention":
                    _add_attention(rules, g, block, f"{layer}mixer.")
                case "mlp":
                    _add_mlp(rules, g, config, block, f"{layer}mixer.")
                case _:
                    _add_moe(rules, g, config, block, f"{layer}mixer.")
        rules.add("output_norm.weight", f"{root}.norm_f.weight", (g.hidden,))
        if rules.has("lm_head.weight") and not config.get("tie_word_embeddings"):
            rules.add("output.weight", "lm_head.weight", (g.vocabulary, g.hidden))
        elif config.get("tie_word_embeddings"):
            rules.drop("lm_head.weight")
        else:
            raise InputError(
                "the checkpoint has no lm_head.weight, and config.json does not tie the embeddings"
            )
        for name in stored:
            if name.startswith("mtp."):
                rules.drop(name)
        return rules.finish()


def _epsilon(config: Config) -> float:
    return config_float(config, "layer_norm_epsilon", "layer_norm_eps", "norm_eps", "rms_norm_eps")


def _expert_keys(config: Config) -> Metadata:
    keys: Metadata = {
        "expert_count": meta("u32", config_int(config, "n_routed_experts")),
        "expert_used_count": meta("u32", config_int(config, "num_experts_per_tok")),
        "expert_feed_forward_length": meta("u32", config_int(config, "moe_intermediate_size")),
        "expert_shared_count": meta("u32", config_int(config, "n_shared_experts")),
        "expert_shared_feed_forward_length": meta(
            "u32", config_int(config, "moe_shared_expert_intermediate_size")
        ),
        "expert_weights_norm": meta("bool", bool(config.get("norm_topk_prob", True))),
        "expert_weights_scale": meta("f32", config_float(config, "routed_scaling_factor")),
        "expert_group_count": meta("u32", config_int(config, "n_group")),
    }
    if config.get("topk_group") is not None:
        keys["expert_group_used_count"] = meta("u32", config_int(config, "topk_group"))
    if config.get("moe_latent_size") is not None:
        keys["moe_latent_size"] = meta("u32", config_int(config, "moe_latent_size"))
    return keys


def _minus_exp(log: NDArray[np.float32]) -> NDArray[np.float32]:
    """A_log → A, through F64 so that the result is the nearest F32 on every machine.

    llama.cpp's converter has torch's F32 exponential, whose last bit is another in 1 % of values.
    """
    return (-np.exp(log.astype(np.float64))).astype(np.float32)


def _add_mamba(rules: Rules, g: NemotronSizes, block: str, mixer: str) -> None:
    heads, inner, channels = g.ssm_heads, g.ssm_inner, g.conv_channels
    if inner % g.ssm_groups:
        raise InputError(f"config.json: {inner} channels do not divide into {g.ssm_groups} groups")
    rules.add(
        f"{block}ssm_in.weight", f"{mixer}in_proj.weight", (inner + channels + heads, g.hidden)
    )
    rules.add(
        f"{block}ssm_conv1d.weight",
        f"{mixer}conv1d.weight",
        (channels, g.conv_kernel),
        stored_shape=(channels, 1, g.conv_kernel),
    )
    if rules.has(f"{mixer}conv1d.bias"):
        rules.add(f"{block}ssm_conv1d.bias", f"{mixer}conv1d.bias", (channels,))
    rules.add(f"{block}ssm_dt.bias", f"{mixer}dt_bias", (heads,))
    rules.add(
        f"{block}ssm_a", f"{mixer}A_log", (heads, 1), stored_shape=(heads,), values=_minus_exp
    )
    rules.add(f"{block}ssm_d", f"{mixer}D", (heads, 1), stored_shape=(heads,))
    rules.add(
        f"{block}ssm_norm.weight",
        f"{mixer}norm.weight",
        (g.ssm_groups, inner // g.ssm_groups),
        stored_shape=(inner,),
    )
    rules.add(f"{block}ssm_out.weight", f"{mixer}out_proj.weight", (g.hidden, inner))


def _add_attention(rules: Rules, g: NemotronSizes, block: str, mixer: str) -> None:
    # Nothing is rotated here, so any one order of a head's rows in q and k gives the same scores.
    # llama.cpp's converter orders them for rotation; the same order keeps files and imatrices
    # interchangeable with the published ones.
    for letter, heads in (("q", g.heads), ("k", g.kv_heads), ("v", g.kv_heads)):
        rows = heads * g.head_dim
        order = None if letter == "v" else rotary_row_order(heads, g.head_dim)
        part = f"{mixer}{letter}_proj."
        rules.add(
            f"{block}attn_{letter}.weight", f"{part}weight", (rows, g.hidden), row_order=order
        )
        if rules.has(f"{part}bias"):
            rules.add(f"{block}attn_{letter}.bias", f"{part}bias", (rows,), row_order=order)
    rules.add(
        f"{block}attn_output.weight", f"{mixer}o_proj.weight", (g.hidden, g.heads * g.head_dim)
    )
    if rules.has(f"{mixer}o_proj.bias"):
        rules.add(f"{block}attn_output.bias", f"{mixer}o_proj.bias", (g.hidden,))


def _add_mlp(rules: Rules, g: NemotronSizes, config: Config, block: str, mixer: str) -> None:
    inner = config_int(config, "intermediate_size")
    for name, rows, row in (("up", inner, g.hidden), ("down", g.hidden, inner)):
        rules.add(f"{block}ffn_{name}.weight", f"{mixer}{name}_proj.weight", (rows, row))
        if rules.has(f"{mixer}{name}_proj.bias"):
            rules.add(f"{block}ffn_{name}.bias", f"{mixer}{name}_proj.bias", (rows,))


def _add_moe(rules: Rules, g: NemotronSizes, config: Config, block: str, mixer: str) -> None:
    experts = config_int(config, "n_routed_experts")
    inner = config_int(config, "moe_intermediate_size")
    shared = config_int(config, "moe_shared_expert_intermediate_size")
    width = g.hidden
    rules.add(f"{block}ffn_gate_inp.weight", f"{mixer}gate.weight", (experts, g.hidden))
    bias = f"{mixer}gate.e_score_correction_bias"
    rules.add(f"{block}exp_probs_b.bias", bias, (experts,))
    if config.get("moe_latent_size") is not None:
        width = config_int(config, "moe_latent_size")
        down, up = f"{mixer}fc1_latent_proj.weight", f"{mixer}fc2_latent_proj.weight"
        rules.add(f"{block}ffn_latent_down.weight", down, (width, g.hidden))
        rules.add(f"{block}ffn_latent_up.weight", up, (g.hidden, width))
    for name, rows, row in (("down", width, inner), ("up", inner, width)):
        parts = [f"{mixer}experts.{e}.{name}_proj.weight" for e in range(experts)]
        rules.add(f"{block}ffn_{name}_exps.weight", parts, (experts, rows, row))
    for name, rows, row in (("down", g.hidden, shared), ("up", shared, g.hidden)):
        part = f"{mixer}shared_experts.{name}_proj.weight"
        rules.add(f"{block}ffn_{name}_shexp.weight", part, (rows, row))
