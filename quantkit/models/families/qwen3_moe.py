"""Qwen3, mixture of experts in every layer: GGUF architecture `qwen3moe`."""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, Rules, StoredTensor, TensorRule, config_int, meta
from quantkit.models.families.decoder import (
    add_embedding,
    add_gated_experts,
    add_output,
    decoder_keys,
    decoder_sizes,
    with_prefix,
)
from quantkit.models.families.qwen2 import check_qwen_config, check_qwen_tensors
from quantkit.models.families.qwen3 import add_qwen3_attention

_WHY = (
    "but llama.cpp loads qwen3moe models only with experts in every layer; there is no GGUF "
    "architecture for this model"
)


class Qwen3Moe:
    """Qwen3MoeForCausalLM, with one tensor for each expert or all of a layer's in one."""

    architectures = ("Qwen3MoeForCausalLM",)

    def metadata(self, config: Config) -> Metadata:
        # Where a window is used here, it is used in every layer.
        check_qwen_config(config, sliding=range(config_int(config, "num_hidden_layers")))
        _check_every_layer_has_experts(config)
        if config.get("norm_topk_prob") is not True:
            raise InputError(
                f"config.json: norm_topk_prob is {config.get('norm_topk_prob')!r}, but "
                "llama.cpp always normalises the experts' weights in qwen3moe models; set it to "
                "true to accept that"
            )
        experts, used = _experts(config), config_int(config, "num_experts_per_tok")
        if used > experts:
            raise InputError(
                f"config.json: num_experts_per_tok is {used}, but there are only {experts} experts"
            )
        keys = decoder_keys(config) | {
            "expert_count": meta("u32", experts),
            "expert_used_count": meta("u32", used),
            "expert_feed_forward_length": meta("u32", config_int(config, "moe_intermediate_size")),
        }
        return with_prefix("qwen3moe", keys)

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        _check_every_layer_has_experts(config)
        check_qwen_tensors(stored)
        sizes, experts = decoder_sizes(config), _experts(config)
        inner = config_int(config, "moe_intermediate_size")
        rules = Rules(stored)
        add_embedding(rules, sizes)
        for index in range(sizes.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            add_qwen3_attention(rules, sizes, block, layer)
            router = f"{layer}mlp.gate.weight"
            rules.add(f"{block}ffn_gate_inp.weight", router, (experts, sizes.hidden))
            add_gated_experts(rules, experts, sizes.hidden, inner, block, f"{layer}mlp.experts")
        add_output(rules, config, sizes)
        return rules.finish()


def _experts(config: Config) -> int:
    return config_int(config, "num_experts", "num_local_experts")  # the second in transformers 5


def _check_every_layer_has_experts(config: Config) -> None:
    """llama.cpp loads a router and experts in every layer of qwen3moe, and no dense layer.

    Raises:
        InputError: mlp_only_layers or decoder_sparse_step makes a layer dense.
    """
    layers = config_int(config, "num_hidden_layers")
    step = config_int(config, "decoder_sparse_step")
    only = config.get("mlp_only_layers") or []
    if not isinstance(only, list) or not all(type(index) is int for index in only):
        raise InputError(f"config.json: mlp_only_layers is {only!r}, expected a list of layers")
    if step > 1:
        raise InputError(
            f"config.json: decoder_sparse_step is {step}, so layer 0 and others are dense, {_WHY}"
        )
    if dense := [index for index in only if 0 <= index < layers]:
        raise InputError(f"config.json: mlp_only_layers makes layers {dense} dense, {_WHY}")
