"""Llama and Mistral, dense: GGUF architecture `llama`; and what other decoders share with them.

The names are those of transformers' modelling files: `model.layers.N.self_attn.q_proj`, … A family
whose names or layout differ writes its own rules.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    DECODER_FIXED,
    Config,
    Fixed,
    Keys,
    Rules,
    StoredTensor,
    TensorRule,
    config_float,
    config_int,
    refuse_if,
    with_prefix,
)
from quantkit.models.families.rope import (
    ROPE_READS,
    add_rope_factors,
    check_no_unread_rope,
    rope_keys,
    rotary_row_order,
)

DECODER_READS = ROPE_READS | {
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps",
    "tie_word_embeddings", "attention_bias", "mlp_bias",
}  # fmt: skip
"""`Family.reads` of what `decoder_sizes`, `decoder_keys`, `add_output` and `check_biases` read."""


class Llama:
    """LlamaForCausalLM and MistralForCausalLM.

    Attributes:
        norm_rope: llama.cpp rotates neighbours ("norm" rope) and reads frequency factors; with
            "neox" rope rows stay in place.
    """

    architectures: tuple[str, ...] = ("LlamaForCausalLM", "MistralForCausalLM")
    norm_rope = True
    reads = DECODER_READS | {"sliding_window"}
    fixed: Fixed = DECODER_FIXED

    def metadata(self, config: Config) -> Metadata:
        check_no_unread_rope(config, reads_factors=True)
        _check_window(config)
        sizes = decoder_sizes(config)
        own: Keys = {"vocab_size": sizes.vocabulary, "rope.dimension_count": sizes.head_dim}
        return with_prefix("llama", decoder_keys(config) | own)

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        sizes, rules = decoder_sizes(config), Rules(stored)
        if self.norm_rope:
            add_rope_factors(rules, config, sizes.head_dim)
        rules.add("token_embd.weight", "model.embed_tokens.weight", sizes.embedding)
        for index in range(sizes.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            rules.add_norm(f"{block}attn_norm", f"{layer}input_layernorm", sizes.hidden)
            self._add_attention(rules, sizes, block, f"{layer}self_attn.")
            rules.add_norm(f"{block}ffn_norm", f"{layer}post_attention_layernorm", sizes.hidden)
            self._add_mlp(rules, config, block, f"{layer}mlp.")
        add_output(rules, config, sizes)
        return rules.finish()

    def _add_attention(self, rules: Rules, sizes: DecoderSizes, block: str, attention: str) -> None:
        add_attention(rules, sizes, block, attention, interleaved=self.norm_rope)

    def _add_mlp(self, rules: Rules, config: Config, block: str, mlp: str) -> None:
        """gate, up and down; `mlp` is the checkpoint's prefix."""
        hidden, inner = config_int(config, "hidden_size"), config_int(config, "intermediate_size")
        for name in ("gate", "up", "down"):
            shape = (hidden, inner) if name == "down" else (inner, hidden)
            rules.add_linear(f"{block}ffn_{name}", f"{mlp}{name}_proj", shape)


_MISTRAL_WINDOW = 4096
"""Of Mistral 7B v0.1 and its fine-tunes, and what transformers takes where the key is absent.
llama.cpp runs them without a window, and that is how they are used; README.md says so."""


def _check_window(config: Config) -> None:
    """Refuse other windows: llama.cpp attends to all tokens in this architecture."""
    window, context = config.get("sliding_window"), config_int(config, "max_position_embeddings")
    if window is None or window == _MISTRAL_WINDOW:
        return
    refuse_if(
        config_int(config, "sliding_window") < context,
        f"sliding_window is {window}, so all layers attend to {window} of {context} tokens, but "
        "llama.cpp attends to all of them in this architecture; set sliding_window to null to "
        f"accept that, or max_position_embeddings to {window}",
    )


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes that config.json gives under the usual names."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def embedding(self) -> tuple[int, int]:
        return self.vocabulary, self.hidden


def decoder_sizes(config: Config) -> DecoderSizes:
    """The sizes, all positive."""
    hidden = config_int(config, "hidden_size")
    heads = config_int(config, "num_attention_heads")
    refuse_if(
        config.get("head_dim") is None and hidden % heads > 0,
        f"hidden_size {hidden} does not divide into {heads} heads",
    )
    return DecoderSizes(
        layers=config_int(config, "num_hidden_layers"),
        hidden=hidden,
        vocabulary=config_int(config, "vocab_size"),
        heads=heads,
        kv_heads=config_int(config, "num_key_value_heads", "num_attention_heads"),
        head_dim=config_int({"default": hidden // heads, **config}, "head_dim", "default"),
    )


def decoder_keys(config: Config) -> Keys:
    """The keys that every such architecture has."""
    sizes = decoder_sizes(config)
    keys: Keys = {
        "block_count": sizes.layers,
        "context_length": config_int(config, "max_position_embeddings"),
        "embedding_length": sizes.hidden,
        "feed_forward_length": config_int(config, "intermediate_size"),
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.layer_norm_rms_epsilon": config_float(config, "rms_norm_eps"),
    }
    if config.get("head_dim") is not None:
        keys |= {"attention.key_length": sizes.head_dim, "attention.value_length": sizes.head_dim}
    return keys | rope_keys(config)


def add_output(rules: Rules, config: Config, sizes: DecoderSizes) -> None:
    """The last norm and the output matrix.

    Tied embeddings have no output matrix: llama.cpp takes token_embd where output.weight is absent.
    """
    rules.add("output_norm.weight", "model.norm.weight", (sizes.hidden,))
    if config.get("tie_word_embeddings"):
        rules.drop("lm_head.weight")
    else:
        rules.add("output.weight", "lm_head.weight", sizes.embedding)
    for name in rules.stored:
        if name.endswith(".rotary_emb.inv_freq"):  # Recomputed from rope_theta everywhere.
            rules.drop(name)


def add_attention(
    rules: Rules, sizes: DecoderSizes, block: str, attention: str, *, interleaved: bool
) -> None:
    """Query, key, value and output of one layer.

    Args:
        block, attention: prefixes in the GGUF and checkpoint, `blk.3.`, `….layers.3.self_attn.`.
        interleaved: llama.cpp rotates neighbours for this architecture ("norm" rope, see
            `llama_model_rope_type` in its llama-model.cpp), so rows of q and k change places; with
            "neox" rope they stay.
    """
    for letter, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
        turned = interleaved and letter != "v"
        order = partial(rotary_row_order, heads, sizes.head_dim) if turned else None
        shape = (heads * sizes.head_dim, sizes.hidden)
        rules.add_linear(f"{block}attn_{letter}", f"{attention}{letter}_proj", shape, order)
    shape = (sizes.hidden, sizes.heads * sizes.head_dim)
    rules.add_linear(f"{block}attn_output", f"{attention}o_proj", shape)


def add_gate_and_up(
    rules: Rules, block: str, suffix: str, part: str, shape: tuple[int, ...]
) -> None:
    """gate and up, each of `shape`, from one `part` that holds gate's rows before up's."""
    *experts, inner, hidden = shape
    for name in ("gate", "up"):
        rules.add(
            f"{block}ffn_{name}{suffix}.weight",
            part,
            shape,
            stored_shape=(*experts, 2 * inner, hidden),
            row_order=partial(_half_rows, math.prod(experts), inner, second=name == "up"),
        )


@lru_cache(maxsize=8)  # One array for all layers: a large mixture has 200000 rows in each.
def _half_rows(matrices: int, rows: int, *, second: bool) -> NDArray[np.intp]:
    """Rows of one half of each of `matrices` stacked matrices of 2 × `rows` rows."""
    first = np.arange(matrices, dtype=np.intp)[:, None] * (2 * rows) + rows * second
    return (first + np.arange(rows, dtype=np.intp)).reshape(-1)


def expert_parts(prefix: str, experts: int, name: str) -> Sequence[str]:
    """`PREFIX.0.NAME.weight`, … of checkpoints with one tensor for each expert."""
    return [f"{prefix}.{index}.{name}.weight" for index in range(experts)]
