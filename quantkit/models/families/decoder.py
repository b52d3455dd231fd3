"""What most transformer decoders share: sizes, metadata keys, attention and gated MLP.

The names are those of transformers' modelling files: `model.layers.N.self_attn.q_proj`, … A family
whose names or layout differ writes its own rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    Config,
    Rules,
    config_float,
    config_int,
    meta,
    refuse_if,
)
from quantkit.models.families.rope import rope_keys, rotary_row_order


@dataclass(frozen=True)
class DecoderSizes:
    """Sizes that config.json gives under the usual names."""

    layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int


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


def decoder_keys(config: Config) -> Metadata:
    """The keys that every such architecture has, without its prefix; see `with_prefix`."""
    sizes = decoder_sizes(config)
    keys: Metadata = {
        "block_count": meta("u32", sizes.layers),
        "context_length": meta("u32", config_int(config, "max_position_embeddings")),
        "embedding_length": meta("u32", sizes.hidden),
        "feed_forward_length": meta("u32", config_int(config, "intermediate_size")),
        "attention.head_count": meta("u32", sizes.heads),
        "attention.head_count_kv": meta("u32", sizes.kv_heads),
        "attention.layer_norm_rms_epsilon": meta("f32", config_float(config, "rms_norm_eps")),
    }
    if config.get("head_dim") is not None:
        keys["attention.key_length"] = meta("u32", sizes.head_dim)
        keys["attention.value_length"] = meta("u32", sizes.head_dim)
    return keys | rope_keys(config)


def with_prefix(architecture: str, keys: Metadata) -> Metadata:
    """`general.architecture` and `general.file_type`, then `keys` as the architecture's own."""
    return {
        "general.architecture": meta("str", architecture),
        "general.file_type": meta("u32", 32),  # LLAMA_FTYPE_MOSTLY_BF16
    } | {f"{architecture}.{key}": value for key, value in keys.items()}


def add_embedding(rules: Rules, sizes: DecoderSizes) -> None:
    shape = (sizes.vocabulary, sizes.hidden)
    rules.add("token_embd.weight", "model.embed_tokens.weight", shape)


def add_output(rules: Rules, config: Config, sizes: DecoderSizes) -> None:
    """The last norm and the output matrix.

    Tied embeddings have no output matrix: llama.cpp takes token_embd where output.weight is absent.
    """
    rules.add("output_norm.weight", "model.norm.weight", (sizes.hidden,))
    if config.get("tie_word_embeddings"):
        rules.drop("lm_head.weight")
    else:
        rules.add("output.weight", "lm_head.weight", (sizes.vocabulary, sizes.hidden))
    for name in rules.stored:
        if name.endswith(".rotary_emb.inv_freq"):  # Recomputed from rope_theta everywhere.
            rules.drop(name)


def add_norm(rules: Rules, name: str, part: str, width: int) -> None:
    """The weights of a norm without bias."""
    rules.add(f"{name}.weight", f"{part}.weight", (width,))


def add_linear(
    rules: Rules,
    name: str,
    part: str,
    shape: tuple[int, int],
    row_order: NDArray[np.intp] | None = None,
) -> None:
    """A matrix, and its bias where the checkpoint has one."""
    rules.add(f"{name}.weight", f"{part}.weight", shape, row_order=row_order)
    if rules.has(f"{part}.bias"):
        rules.add(f"{name}.bias", f"{part}.bias", shape[:1], row_order=row_order)


def add_attention(
    rules: Rules, sizes: DecoderSizes, block: str, attention: str, *, interleaved: bool
) -> None:
    """Query, key, value and output of one layer.

    Args:
        block: GGUF prefix, `blk.3.`.
        attention: the checkpoint's prefix, `model.layers.3.self_attn.`.
        interleaved: llama.cpp rotates neighbours for this architecture ("norm" rope, see
            `llama_model_rope_type` in its llama-model.cpp), so rows of q and k change places; with
            "neox" rope they stay.
    """
    for letter, heads in (("q", sizes.heads), ("k", sizes.kv_heads), ("v", sizes.kv_heads)):
        turned = interleaved and letter != "v"
        order = rotary_row_order(heads, sizes.head_dim) if turned else None
        shape = (heads * sizes.head_dim, sizes.hidden)
        add_linear(rules, f"{block}attn_{letter}", f"{attention}{letter}_proj", shape, order)
    shape = (sizes.hidden, sizes.heads * sizes.head_dim)
    add_linear(rules, f"{block}attn_output", f"{attention}o_proj", shape)


def add_gated_mlp(rules: Rules, hidden: int, inner: int, block: str, mlp: str) -> None:
    """gate, up and down of a dense layer; `mlp` is the checkpoint's prefix."""
    for name in ("gate", "up", "down"):
        shape = (hidden, inner) if name == "down" else (inner, hidden)
        add_linear(rules, f"{block}ffn_{name}", f"{mlp}{name}_proj", shape)


def add_gated_experts(
    rules: Rules, experts: int, hidden: int, inner: int, block: str, prefix: str
) -> None:
    """gate, up and down of a layer's experts; `prefix` is the checkpoint's, `….mlp.experts`.

    Either one tensor for each expert, `PREFIX.0.gate_proj.weight`, or all experts in one,
    `PREFIX.down_proj` and `PREFIX.gate_up_proj` with gate's rows before up's.
    """
    ending = ".weight" if rules.has(f"{prefix}.gate_up_proj.weight") else ""
    shapes = {name: (experts, inner, hidden) for name in ("gate", "up")}
    shapes["down"] = (experts, hidden, inner)
    if rules.has(fused := f"{prefix}.gate_up_proj{ending}"):
        add_gate_and_up(rules, block, "_exps", fused, shapes["up"])
        down = f"{prefix}.down_proj{ending}"
        rules.add(f"{block}ffn_down_exps.weight", down, shapes["down"])
        return
    for name, shape in shapes.items():
        parts = expert_parts(prefix, experts, f"{name}_proj")
        rules.add(f"{block}ffn_{name}_exps.weight", parts, shape)


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
            row_order=_half_rows(math.prod(experts), inner, second=name == "up"),
        )


@lru_cache(maxsize=8)  # One array for all layers: a large mixture has 200000 rows in each.
def _half_rows(matrices: int, rows: int, *, second: bool) -> NDArray[np.intp]:
    """Rows of one half of each of `matrices` stacked matrices of 2 × `rows` rows."""
    first = np.arange(matrices, dtype=np.intp)[:, None] * (2 * rows) + rows * second
    return (first + np.arange(rows, dtype=np.intp)).reshape(-1)


def expert_parts(prefix: str, experts: int, name: str) -> Sequence[str]:
    """`PREFIX.0.NAME.weight`, … of checkpoints with one tensor for each expert."""
    return [f"{prefix}.{index}.{name}.weight" for index in range(experts)]
