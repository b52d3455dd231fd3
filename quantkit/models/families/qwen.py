"""Qwen2, Qwen3 and Qwen3-MoE: GGUF architectures `qwen2`, `qwen3` and `qwen3moe`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    DECODER_FIXED,
    Config,
    Keys,
    Rules,
    StoredTensor,
    TensorRule,
    config_int,
    refuse_if,
    with_prefix,
)
from quantkit.models.families.llama import (
    DECODER_READS,
    DecoderSizes,
    Llama,
    add_gate_and_up,
    decoder_keys,
    decoder_sizes,
    expert_parts,
)
from quantkit.models.families.rope import check_no_unread_rope

_READ_BIASES = tuple(f".self_attn.{letter}_proj.bias" for letter in "qkv")


class Qwen2(Llama):
    """Qwen2ForCausalLM: like Llama, but with biases on query, key and value and rows in place."""

    architectures = ("Qwen2ForCausalLM",)
    reads = DECODER_READS | {
        "sliding_window", "use_sliding_window", "max_window_layers", "layer_types",
    }  # fmt: skip
    fixed: Mapping[str, tuple[object, ...]] = {**DECODER_FIXED, "qkv_bias": (True,)}
    norm_rope = False

    def metadata(self, config: Config) -> Metadata:
        _check_config(config, _sliding_layers(config))
        sizes = decoder_sizes(config)
        refuse_if(
            sizes.heads * sizes.head_dim != sizes.hidden,
            f"{sizes.heads} heads of {sizes.head_dim} are not the hidden_size {sizes.hidden}, and "
            "llama.cpp loads no such qwen2 model",
        )
        return with_prefix("qwen2", decoder_keys(config))

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        _check_tensors(stored)
        return super().rules(config, stored)


class Qwen3(Qwen2):
    """Qwen3ForCausalLM: query and key are normalised per head, biases are rare."""

    architectures = ("Qwen3ForCausalLM",)
    reads = Qwen2.reads | {"qkv_bias"}
    fixed: Mapping[str, tuple[object, ...]] = {**DECODER_FIXED, "use_qk_norm": (True,)}

    def metadata(self, config: Config) -> Metadata:
        _check_config(config, _sliding_layers(config))
        config_int(config, "head_dim")  # never hidden size / heads
        return with_prefix("qwen3", decoder_keys(config))

    def _add_attention(self, rules: Rules, sizes: DecoderSizes, block: str, attention: str) -> None:
        super()._add_attention(rules, sizes, block, attention)
        for letter in "qk":  # norms that all heads share
            norm = f"{attention}{letter}_norm"
            rules.add_norm(f"{block}attn_{letter}_norm", norm, sizes.head_dim)


class Qwen3Moe(Qwen3):
    """Qwen3MoeForCausalLM, with one tensor for each expert or all of a layer's in one."""

    architectures = ("Qwen3MoeForCausalLM",)
    reads = Qwen3.reads | {
        "num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size",
        "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers",
    }  # fmt: skip

    def metadata(self, config: Config) -> Metadata:
        # Where a window is used here, it is used in every layer.
        _check_config(config, range(config_int(config, "num_hidden_layers")))
        _check_every_layer_has_experts(config)
        normalised = config.get("norm_topk_prob")
        refuse_if(
            normalised is not True,
            f"norm_topk_prob is {normalised!r}, but llama.cpp always normalises the experts' "
            "weights in qwen3moe models; set it to true to accept that",
        )
        experts, used = _experts(config), config_int(config, "num_experts_per_tok")
        refuse_if(
            used > experts, f"num_experts_per_tok is {used}, but there are only {experts} experts"
        )
        own: Keys = {
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": config_int(config, "moe_intermediate_size"),
        }
        return with_prefix("qwen3moe", decoder_keys(config) | own)

    def _add_mlp(self, rules: Rules, config: Config, block: str, mlp: str) -> None:
        """The router; gate, up and down of the experts.

        Either one tensor for each expert, `….experts.0.gate_proj.weight`, or all experts in one,
        `….experts.down_proj` and `….experts.gate_up_proj` with gate's rows before up's.
        """
        experts, hidden = _experts(config), config_int(config, "hidden_size")
        inner, prefix = config_int(config, "moe_intermediate_size"), f"{mlp}experts"
        rules.add(f"{block}ffn_gate_inp.weight", f"{mlp}gate.weight", (experts, hidden))
        up, down = (experts, inner, hidden), (experts, hidden, inner)
        for ending in (".weight", ""):
            if (fused := f"{prefix}.gate_up_proj{ending}") in rules.stored:
                add_gate_and_up(rules, block, "_exps", fused, up)
                rules.add(f"{block}ffn_down_exps.weight", f"{prefix}.down_proj{ending}", down)
                return
        for name, shape in (("gate", up), ("up", up), ("down", down)):
            parts = expert_parts(prefix, experts, f"{name}_proj")
            rules.add(f"{block}ffn_{name}_exps.weight", parts, shape)


def _experts(config: Config) -> int:
    return config_int(config, "num_experts", "num_local_experts")  # the second in transformers 5


def _sliding_layers(config: Config) -> Sequence[int]:
    """Layers that attend to a window where config.json uses one."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return range(config_int(config, "num_hidden_layers"))
    return [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]


def _check_config(config: Config, sliding: Sequence[int]) -> None:
    """Refuse what llama.cpp's Qwen graphs would not compute, although its converter takes it."""
    origin = str(config.get("_name_or_path") or "")
    refuse_if(
        "qwen3-reranker" in origin.lower(),
        f"the model comes from {origin!r}, a reranker, whose head llama.cpp makes from two rows of "
        "the output: convert it with llama.cpp and give the GGUF to --model",
    )
    context = config_int(config, "max_position_embeddings")
    if config.get("use_sliding_window") and config.get("sliding_window") is not None and sliding:
        window = config_int(config, "sliding_window")
        refuse_if(
            window < context,
            f"{len(sliding)} layers from layer {sliding[0]} on attend to a window of {window} "
            f"tokens of {context}, but llama.cpp attends to all of them in Qwen models; set "
            "use_sliding_window to false to accept that",
        )
    check_no_unread_rope(config)


def _check_tensors(stored: Mapping[str, StoredTensor]) -> None:
    """Refuse tensors that llama.cpp's Qwen graphs do not load."""
    if "embed_tokens.weight" in stored and "model.embed_tokens.weight" not in stored:
        raise InputError(
            "the checkpoint's tensors lack the prefix 'model.' (embed_tokens.weight), so this is "
            "an encoder without an output, an embedding model for example; quantkit builds models "
            "that generate text: convert it with llama.cpp"
        )
    for name in (name for name in stored if name.startswith("model.layers.")):
        if name.endswith(".bias") and not name.endswith(_READ_BIASES):
            raise InputError(
                f"the checkpoint has the bias {name}, but llama.cpp's Qwen models have biases on "
                "query, key and value only and it would not load the GGUF"
            )


def _check_every_layer_has_experts(config: Config) -> None:
    """llama.cpp loads a router and experts in every layer of qwen3moe, and no dense layer."""
    layers = config_int(config, "num_hidden_layers")
    step = config_int(config, "decoder_sparse_step")
    only = config.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(type(index) is int for index in only):
        raise InputError(f"config.json: mlp_only_layers is {only!r}, expected a list of layers")
    dense = [index for index in only if 0 <= index < layers]
    why = (
        "but llama.cpp loads qwen3moe models only with experts in every layer; there is no GGUF "
        "architecture for this model"
    )
    refuse_if(step > 1, f"decoder_sparse_step is {step}, so layer 0 and others are dense, {why}")
    refuse_if(bool(dense), f"mlp_only_layers makes layers {dense} dense, {why}")
