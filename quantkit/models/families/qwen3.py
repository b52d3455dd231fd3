"""Qwen3, dense: GGUF architecture `qwen3`."""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import Config, Rules, StoredTensor, TensorRule, config_int
from quantkit.models.families.decoder import (
    DecoderSizes,
    add_attention,
    add_embedding,
    add_gated_mlp,
    add_head_norms,
    add_norm,
    add_output,
    decoder_keys,
    decoder_sizes,
    with_prefix,
)
from quantkit.models.families.qwen2 import check_dense_config, check_qwen_tensors


class Qwen3:
    """Qwen3ForCausalLM: query and key are normalised per head, biases are rare."""

    architectures = ("Qwen3ForCausalLM",)

    def metadata(self, config: Config) -> Metadata:
        check_dense_config(config)
        config_int(config, "head_dim")  # never hidden size / heads
        return with_prefix("qwen3", decoder_keys(config))

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        check_qwen_tensors(stored)
        sizes, inner = decoder_sizes(config), config_int(config, "intermediate_size")
        rules = Rules(stored)
        add_embedding(rules, sizes)
        for index in range(sizes.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            add_qwen3_attention(rules, sizes, block, layer)
            add_gated_mlp(rules, sizes.hidden, inner, block, f"{layer}mlp.")
        add_output(rules, config, sizes)
        return rules.finish()


def add_qwen3_attention(rules: Rules, sizes: DecoderSizes, block: str, layer: str) -> None:
    """A layer's attention with the norms of heads, and the norms before it and after it."""
    add_norm(rules, f"{block}attn_norm", f"{layer}input_layernorm", sizes.hidden)
    add_attention(rules, sizes, block, f"{layer}self_attn.", interleaved=False)
    add_head_norms(rules, sizes, block, f"{layer}self_attn.")
    add_norm(rules, f"{block}ffn_norm", f"{layer}post_attention_layernorm", sizes.hidden)
