"""NVIDIA Nemotron-H: Mamba-2, attention without rotary embedding, and MLP or (latent) MoE layers.

GGUF architectures `nemotron_h` (dense MLP layers) and `nemotron_h_moe`.
test_against_llama_cpp.py holds the result equal to that of llama.cpp's converter,
with the multi-token prediction head (`mtp.*`) and without.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    PREDICTION_LAYERS,
    Config,
    Keys,
    Rules,
    StoredTensor,
    TensorRule,
    config_float,
    config_int,
    layer_kinds,
    refuse_if,
    with_prefix,
)
from quantkit.models.families.llama import DecoderSizes, add_attention, expert_parts
from quantkit.models.families.mamba2 import (
    HYBRID_KINDS,
    UNROTATED_CONTEXT_LENGTH,
    Mamba2Sizes,
    add_mamba2,
    check_time_steps,
    mamba2_keys,
)
from quantkit.models.families.rope import ROPE_READS

_EPSILONS = ("layer_norm_epsilon", "layer_norm_eps", "norm_eps", "rms_norm_eps")


class NemotronH:
    """NemotronHForCausalLM in both spellings of its layers."""

    architectures = ("NemotronHForCausalLM",)
    reads = frozenset((
        *_EPSILONS, PREDICTION_LAYERS,
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
        "num_key_value_heads", "head_dim", "attention_head_dim", "max_position_embeddings",
        "tie_word_embeddings", "attention_bias", "mlp_bias", "hybrid_override_pattern",
        "layers_block_type", "layer_types", "mtp_hybrid_override_pattern", "mtp_layers_block_type",
        "mamba_num_heads", "mamba_head_dim", "ssm_state_size", "n_groups", "mamba_n_groups",
        "conv_kernel", "mamba_d_conv", "n_routed_experts", "num_local_experts",
        "num_experts_per_tok", "moe_intermediate_size", "moe_latent_size", "n_shared_experts",
        "moe_shared_expert_intermediate_size", "norm_topk_prob", "routed_scaling_factor",
        "n_group", "topk_group",
        # Nothing is rotated, and the layers are counted by their kinds.
        *ROPE_READS, "partial_rotary_factor", "num_hidden_layers",
        # Other names of sizes above, and products of them that neither side reads.
        "expand", "mamba_expand", "num_query_groups", "time_step_rank",
        # `check_time_steps`; the others are for starting values, or other names of the same.
        "time_step_limit", "time_step_min", "time_step_max", "time_step_floor", "mamba_dt_min",
        "mamba_dt_max", "mamba_dt_init_floor", "mamba_dt_limit", "mamba_conv_bias",
    ))  # fmt: skip
    fixed: Mapping[str, tuple[object, ...]] = {
        "is_causal": (True,),
        "mlp_hidden_act": ("relu2",),
        "mamba_hidden_act": ("silu", "swish"),
        "use_conv_bias": (True,),
        "use_bias": (False,),
        "mamba_proj_bias": (False,),
    }

    def metadata(self, config: Config) -> Metadata:
        check_time_steps(config)
        g = nemotron_sizes(config)
        sizes, hidden = g.decoder, g.decoder.hidden
        arch = "nemotron_h_moe" if g.is_moe else "nemotron_h"
        feed_forward = config_int(
            config, "moe_intermediate_size" if g.is_moe else "intermediate_size"
        )
        keys: Keys = {
            "block_count": len(g.blocks),
            "context_length": UNROTATED_CONTEXT_LENGTH,
            "embedding_length": hidden,
            # llama.cpp tells the kinds of layers apart by these two: Mamba has neither.
            "feed_forward_length": [
                0 if kind in ("mamba", "attention") else feed_forward for kind in g.blocks
            ],
            "attention.head_count": sizes.heads,
            "attention.head_count_kv": [
                sizes.kv_heads if kind in ("attention", "prediction") else 0 for kind in g.blocks
            ],
            "attention.layer_norm_epsilon": config_float(config, *_EPSILONS),
            "attention.key_length": sizes.head_dim,
            "attention.value_length": sizes.head_dim,
            "vocab_size": sizes.vocabulary,
            "rope.dimension_count": hidden // sizes.heads,
            "rope.scaling.finetuned": False,
        }
        keys |= mamba2_keys(g.mamba)
        if config.get("norm_eps", config.get("rms_norm_eps")) is not None:
            # The key that llama.cpp takes where it is there; transformers reads one name only.
            keys["attention.layer_norm_rms_epsilon"] = config_float(config, *_EPSILONS)
        if config.get("rope_theta") is not None:
            keys["rope.freq_base"] = config_float(config, "rope_theta")
        if g.is_moe:
            keys |= _expert_keys(config)
        if g.prediction_layers:
            keys["nextn_predict_layers"] = g.prediction_layers
        return with_prefix(arch, keys)

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        g = nemotron_sizes(config)
        sizes, hidden = g.decoder, g.decoder.hidden
        rules = Rules(stored)
        # NVIDIA and transformers write backbone.*, PEFT and some fine-tunes model.*.
        root = "model" if "model.embeddings.weight" in rules.stored else "backbone"
        rules.add("token_embd.weight", f"{root}.embeddings.weight", sizes.embedding)
        for index, kind in enumerate(g.layers):
            block, layer = f"blk.{index}.", f"{root}.layers.{index}."
            rules.add(f"{block}attn_norm.weight", f"{layer}norm.weight", (hidden,))
            match kind:
                case "mamba":
                    add_mamba2(rules, g.mamba, hidden, block, f"{layer}mixer.")
                case "attention":
                    # Nothing is rotated, so any one order of a head's rows in q and k gives the
                    # same scores. llama.cpp's converter orders them for rotation; the same order
                    # keeps files and imatrices interchangeable with the published ones.
                    add_attention(rules, g.decoder, block, f"{layer}mixer.", interleaved=True)
                case "mlp":
                    inner = config_int(config, "intermediate_size")
                    for name, shape in (("up", (inner, hidden)), ("down", (hidden, inner))):
                        part = f"{layer}mixer.{name}_proj"
                        rules.add_linear(f"{block}ffn_{name}", part, shape)
                case _:
                    _add_moe(rules, g, config, block, f"{layer}mixer.")
        rules.add("output_norm.weight", f"{root}.norm_f.weight", (hidden,))
        if "lm_head.weight" in rules.stored and not config.get("tie_word_embeddings"):
            rules.add("output.weight", "lm_head.weight", sizes.embedding)
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


def _expert_keys(config: Config) -> Keys:
    counts = {
        "expert_count": "n_routed_experts",
        "expert_used_count": "num_experts_per_tok",
        "expert_feed_forward_length": "moe_intermediate_size",
        "expert_shared_count": "n_shared_experts",
        "expert_shared_feed_forward_length": "moe_shared_expert_intermediate_size",
    }
    keys: Keys = {key: config_int(config, source) for key, source in counts.items()}
    experts, used = (
        config_int(config, "n_routed_experts"),
        config_int(config, "num_experts_per_tok"),
    )
    refuse_if(
        used > experts,
        f"num_experts_per_tok is {used}, but there are only {experts} experts (n_routed_experts); "
        "is it the checkpoint's own?",
    )
    groups = config_int(config, "n_group")
    chosen = config_int({"default": groups, **config}, "topk_group", "default")
    refuse_if(
        experts % groups > 0 or experts == groups > 1,
        f"{experts} experts do not divide into groups of two or more, of which n_group says "
        f"{groups}; is it the checkpoint's own?",
    )
    if chosen >= groups:  # the best of all groups are the best of all; llama.cpp loads that as one
        groups = chosen = 1
    keys |= {
        "expert_weights_norm": bool(config.get("norm_topk_prob")),
        "expert_weights_scale": config_float(config, "routed_scaling_factor"),
        "expert_group_count": groups,
        "expert_group_used_count": chosen,
    }
    if config.get("moe_latent_size") is not None:
        keys["moe_latent_size"] = config_int(config, "moe_latent_size")
    return keys


def _add_prediction(rules: Rules, g: NemotronSizes, config: Config, block: str) -> None:
    """The multi-token prediction head: one block with an attention and a MoE sub-layer.

    In the checkpoint `mtp.layers.0` fuses the hidden state with the next token's embedding and
    attends, `mtp.layers.1` is the MoE with the head's last norm. llama.cpp's converter permutes
    this attention's rows no otherwise than the others'.
    """
    first, second, hidden = "mtp.layers.0.", "mtp.layers.1.", g.decoder.hidden
    for name in ("enorm", "hnorm"):
        rules.add_norm(f"{block}nextn.{name}", f"{first}{name}", hidden)
    fused = (hidden, 2 * hidden)
    rules.add(f"{block}nextn.eh_proj.weight", f"{first}eh_proj.weight", fused)
    rules.add_norm(f"{block}attn_norm", f"{first}norm", hidden)
    add_attention(rules, g.decoder, block, f"{first}mixer.", interleaved=True)
    rules.add_norm(f"{block}post_attention_norm", f"{second}norm", hidden)
    _add_moe(rules, g, config, block, f"{second}mixer.")
    rules.add_norm(f"{block}nextn.shared_head_norm", f"{second}final_layernorm", hidden)


def _add_moe(rules: Rules, g: NemotronSizes, config: Config, block: str, mixer: str) -> None:
    experts = config_int(config, "n_routed_experts")
    inner = config_int(config, "moe_intermediate_size")
    shared = config_int(config, "moe_shared_expert_intermediate_size")
    width = hidden = g.decoder.hidden
    rules.add(f"{block}ffn_gate_inp.weight", f"{mixer}gate.weight", (experts, hidden))
    bias = f"{mixer}gate.e_score_correction_bias"
    rules.add(f"{block}exp_probs_b.bias", bias, (experts,))
    if config.get("moe_latent_size") is not None:
        width = config_int(config, "moe_latent_size")
        down, up = f"{mixer}fc1_latent_proj.weight", f"{mixer}fc2_latent_proj.weight"
        rules.add(f"{block}ffn_latent_down.weight", down, (width, hidden))
        rules.add(f"{block}ffn_latent_up.weight", up, (hidden, width))
    for name, rows, row in (("down", width, inner), ("up", inner, width)):
        parts = expert_parts(f"{mixer}experts", experts, f"{name}_proj")
        rules.add(f"{block}ffn_{name}_exps.weight", parts, (experts, rows, row))
    for name, rows, row in (("down", hidden, shared), ("up", shared, hidden)):
        part = f"{mixer}shared_experts.{name}_proj.weight"
        rules.add(f"{block}ffn_{name}_shexp.weight", part, (rows, row))


_KIND = HYBRID_KINDS | {"M": "mamba", "*": "attention", "E": "moe", "-": "mlp"}
_KIND |= {"moe": "moe", "mlp": "mlp"}


@dataclass(frozen=True)
class NemotronSizes:
    """The sizes that metadata and tensor shapes are made of."""

    layers: tuple[str, ...]
    decoder: DecoderSizes
    mamba: Mamba2Sizes
    prediction_layers: int

    @property
    def is_moe(self) -> bool:
        return "moe" in self.layers

    @property
    def blocks(self) -> tuple[str, ...]:
        """The kind of each GGUF block: the prediction head is one more, attention and MoE both."""
        return self.layers + ("prediction",) * self.prediction_layers


def nemotron_sizes(config: Config) -> NemotronSizes:
    """The sizes, all positive."""
    layers = _layer_kinds(config)
    return NemotronSizes(
        layers=layers,
        decoder=DecoderSizes(
            layers=len(layers),
            hidden=config_int(config, "hidden_size"),
            vocabulary=config_int(config, "vocab_size"),
            heads=config_int(config, "num_attention_heads"),
            kv_heads=config_int(config, "num_key_value_heads"),
            head_dim=config_int(config, "attention_head_dim", "head_dim"),
        ),
        mamba=Mamba2Sizes(
            heads=config_int(config, "mamba_num_heads"),
            head_dim=config_int(config, "mamba_head_dim"),
            state=config_int(config, "ssm_state_size"),
            groups=config_int(config, "n_groups", "mamba_n_groups"),
            conv_kernel=config_int(config, "conv_kernel", "mamba_d_conv"),
        ),
        prediction_layers=_prediction_layers(config),
    )


def _layer_kinds(config: Config) -> tuple[str, ...]:
    """The kind of each layer from `layers_block_type` or `hybrid_override_pattern` ("ME*E").

    The first is what transformers makes of all spellings of it that config.json has.
    """
    pattern = config.get("layers_block_type") or config.get("hybrid_override_pattern")
    kinds = layer_kinds(pattern, _KIND, "hybrid_override_pattern and layers_block_type")
    refuse_if(
        "moe" in kinds and "mlp" in kinds,
        "dense (mlp) and MoE layers are mixed, which llama.cpp cannot load",
    )
    return kinds


def _prediction_layers(config: Config) -> int:
    """How many multi-token prediction layers the GGUF gets: 0 or 1."""
    if not config.get(PREDICTION_LAYERS):
        return 0
    count = config_int(config, PREDICTION_LAYERS)
    pattern = config.get("mtp_hybrid_override_pattern") or config.get("mtp_layers_block_type")
    kinds = [_KIND.get(str(kind)) for kind in pattern or "*E"]
    refuse_if(
        count != 1 or kinds != ["attention", "moe"],
        f"{count} prediction layers of {pattern!r}, but llama.cpp knows one of attention and MoE; "
        "drop them: 'mtp: drop' in the recipe's convert section",
    )
    return count
