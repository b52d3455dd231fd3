"""Llama and Mistral, dense: GGUF architecture `llama`."""

from __future__ import annotations

from collections.abc import Mapping

from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    check_activation,
    config_int,
    meta,
)
from quantkit.models.families.decoder import (
    add_attention,
    add_embedding,
    add_gated_mlp,
    add_norm,
    add_output,
    decoder_keys,
    decoder_sizes,
    with_prefix,
)
from quantkit.models.families.rope import add_rope_factors, check_no_unread_rope


class Llama:
    """LlamaForCausalLM and MistralForCausalLM."""

    architectures = ("LlamaForCausalLM", "MistralForCausalLM")

    def metadata(self, config: Config) -> Metadata:
        check_activation(config)
        check_no_unread_rope(config, reads_factors=True)
        sizes = decoder_sizes(config)
        keys = decoder_keys(config) | {
            "vocab_size": meta("u32", sizes.vocabulary),
            "rope.dimension_count": meta("u32", sizes.head_dim),
        }
        return with_prefix("llama", keys)

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        sizes, inner = decoder_sizes(config), config_int(config, "intermediate_size")
        rules = Rules(stored)
        add_rope_factors(rules, config, sizes.head_dim)
        add_embedding(rules, sizes)
        for index in range(sizes.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            add_norm(rules, f"{block}attn_norm", f"{layer}input_layernorm", sizes.hidden)
            add_attention(rules, sizes, block, f"{layer}self_attn.", interleaved=True)
            add_norm(rules, f"{block}ffn_norm", f"{layer}post_attention_layernorm", sizes.hidden)
            add_gated_mlp(rules, sizes.hidden, inner, block, f"{layer}mlp.")
        add_output(rules, config, sizes)
        return rules.finish()
