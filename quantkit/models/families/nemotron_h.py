"""NVIDIA Nemotron-H: Mamba-2, attention without rotary embedding, and MLP or (latent) MoE layers.

GGUF architectures `nemotron_h` (dense MLP layers) and `nemotron_h_moe`.
tests/families/test_against_llama_cpp.py holds the result equal to that of llama.cpp's converter,
with the multi-token prediction head (`mtp.*`) and without.
"""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    check_activation,
    config_float,
    config_int,
    meta,
)
from quantkit.models.families.decoder import (
    DecoderSizes,
    add_attention,
    add_linear,
    add_norm,
    expert_parts,
    with_prefix,
)
from quantkit.models.families.mamba2 import add_mamba2, mamba2_keys
from quantkit.models.families.nemotron_sizes import NemotronSizes, nemotron_sizes

CONTEXT_LENGTH = 1 << 20
"""What the GGUF says, whatever config.json does: there is no rotary embedding, so no position
limits the model, and llama-server would cap a slot at the 262144 of Nemotron-3-Super's
`max_position_embeddings` though it was trained to 1M. llama.cpp's converter writes the same."""


class NemotronH:
    """NemotronHForCausalLM in both spellings of its layers."""

    architectures = ("NemotronHForCausalLM",)

    def metadata(self, config: Config) -> Metadata:
        check_activation(config, "mlp_hidden_act", "relu2")
        check_activation(config, "mamba_hidden_act")
        g = nemotron_sizes(config)
        arch = "nemotron_h_moe" if g.is_moe else "nemotron_h"
        feed_forward = config_int(
            config, "moe_intermediate_size" if g.is_moe else "intermediate_size"
        )
        keys: Metadata = {
            "block_count": meta("u32", len(g.blocks)),
            "context_length": meta("u32", CONTEXT_LENGTH),
            "embedding_length": meta("u32", g.hidden),
            # llama.cpp tells the kinds of layers apart by these two: Mamba has neither.
            "feed_forward_length": meta(
                "i32", [0 if kind in ("mamba", "attention") else feed_forward for kind in g.blocks]
            ),
            "attention.head_count": meta("u32", g.heads),
            "attention.head_count_kv": meta(
                "i32",
                [g.kv_heads if kind in ("attention", "prediction") else 0 for kind in g.blocks],
            ),
            "attention.layer_norm_epsilon": meta("f32", _epsilon(config)),
            "attention.key_length": meta("u32", g.head_dim),
            "attention.value_length": meta("u32", g.head_dim),
            "vocab_size": meta("u32", g.vocabulary),
            "rope.dimension_count": meta("u32", g.hidden // g.heads),
            "rope.scaling.finetuned": meta("bool", False),
        }
        keys |= mamba2_keys(g.mamba)
        if config.get("norm_eps", config.get("rms_norm_eps")) is not None:
            epsilon = config_float(config, "rms_norm_eps", "norm_eps")
            keys["attention.layer_norm_rms_epsilon"] = meta("f32", epsilon)
        if config.get("rope_theta") is not None:
            keys["rope.freq_base"] = meta("f32", config_float(config, "rope_theta"))
        if g.is_moe:
            keys |= _expert_keys(config)
        if g.prediction_layers:
            keys["nextn_predict_layers"] = meta("u32", g.prediction_layers)
        return with_prefix(arch, keys)

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
                    add_mamba2(rules, g.mamba, g.hidden, block, f"{layer}mixer.")
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
        if g.prediction_layers:
            _add_prediction(rules, g, config, f"blk.{len(g.layers)}.")
        else:
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
        "expert_weights_norm": meta("bool", bool(config.get("norm_topk_prob"))),
        "expert_weights_scale": meta("f32", config_float(config, "routed_scaling_factor")),
        "expert_group_count": meta("u32", config_int(config, "n_group")),
    }
    if config.get("topk_group") is not None:
        keys["expert_group_used_count"] = meta("u32", config_int(config, "topk_group"))
    if config.get("moe_latent_size") is not None:
        keys["moe_latent_size"] = meta("u32", config_int(config, "moe_latent_size"))
    return keys


def _add_attention(rules: Rules, g: NemotronSizes, block: str, mixer: str) -> None:
    # Nothing is rotated here, so any one order of a head's rows in q and k gives the same scores.
    # llama.cpp's converter orders them for rotation; the same order keeps files and imatrices
    # interchangeable with the published ones.
    sizes = DecoderSizes(len(g.layers), g.hidden, g.vocabulary, g.heads, g.kv_heads, g.head_dim)
    add_attention(rules, sizes, block, mixer, interleaved=True)


def _add_prediction(rules: Rules, g: NemotronSizes, config: Config, block: str) -> None:
    """The multi-token prediction head: one block with an attention and a MoE sub-layer.

    In the checkpoint `mtp.layers.0` fuses the hidden state with the next token's embedding and
    attends, `mtp.layers.1` is the MoE with the head's last norm. llama.cpp's converter permutes
    this attention's rows no otherwise than the others'.
    """
    first, second = "mtp.layers.0.", "mtp.layers.1."
    for name in ("enorm", "hnorm"):
        add_norm(rules, f"{block}nextn.{name}", f"{first}{name}", g.hidden)
    fused = (g.hidden, 2 * g.hidden)
    rules.add(f"{block}nextn.eh_proj.weight", f"{first}eh_proj.weight", fused)
    add_norm(rules, f"{block}attn_norm", f"{first}norm", g.hidden)
    _add_attention(rules, g, block, f"{first}mixer.")
    add_norm(rules, f"{block}post_attention_norm", f"{second}norm", g.hidden)
    _add_moe(rules, g, config, block, f"{second}mixer.")
    add_norm(rules, f"{block}nextn.shared_head_norm", f"{second}final_layernorm", g.hidden)


def _add_mlp(rules: Rules, g: NemotronSizes, config: Config, block: str, mixer: str) -> None:
    inner = config_int(config, "intermediate_size")
    add_linear(rules, f"{block}ffn_up", f"{mixer}up_proj", (inner, g.hidden))
    add_linear(rules, f"{block}ffn_down", f"{mixer}down_proj", (g.hidden, inner))


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
        parts = expert_parts(f"{mixer}experts", experts, f"{name}_proj")
        rules.add(f"{block}ffn_{name}_exps.weight", parts, (experts, rows, row))
    for name, rows, row in (("down", g.hidden, shared), ("up", shared, g.hidden)):
        part = f"{mixer}shared_experts.{name}_proj.weight"
        rules.add(f"{block}ffn_{name}_shexp.weight", part, (rows, row))
