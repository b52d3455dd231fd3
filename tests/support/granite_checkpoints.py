"""Tiny random Granite-4 checkpoints, spelled as IBM's releases are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from checkpoints import (
    Arrays,
    Shapes,
    attention_shapes,
    decoder_shapes,
    mamba_shapes,
    prefixed,
    random_arrays,
    write_checkpoint,
)

HYBRID = ["mamba", "attention", "mamba"]
ATTENTION = ["attention"] * 3
GRANITE: dict[str, Any] = {
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "layer_types": HYBRID,
    "num_hidden_layers": 3,
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 24,
    "shared_intermediate_size": 20,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attention_bias": False,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_conv_bias": True,
    "mamba_proj_bias": False,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000,
    "rope_scaling": None,
    "position_embedding_type": "nope",
    "max_position_embeddings": 131072,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12,
    "residual_multiplier": 0.22,
    "logits_scaling": 6,
    "tie_word_embeddings": True,
}
DENSE: dict[str, Any] = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "intermediate_size": 20,
}
ROPE: dict[str, Any] = {"position_embedding_type": "rope"}


def granite_shapes(config: Mapping[str, Any]) -> Shapes:
    """All tensors that a GraniteMoeHybridForCausalLM of this `config` has, under their names."""
    hidden, heads, kernel = (config[k] for k in ("hidden_size", "mamba_n_heads", "mamba_d_conv"))
    group_states = config["mamba_n_groups"] * config["mamba_d_state"]
    mamba = mamba_shapes(hidden, heads, config["mamba_expand"] * hidden, group_states, kernel)
    mixers = {
        "mamba": prefixed("mamba.", mamba),
        "attention": prefixed("self_attn.", attention_shapes(config)),
    }
    layers = [(mixers[kind], _feed_forward(config)) for kind in config["layer_types"]]
    return decoder_shapes(config, layers)


def granite_arrays(config: Mapping[str, Any]) -> Arrays:
    """Random values for all of `granite_shapes`."""
    return random_arrays(granite_shapes(config))


def _feed_forward(config: Mapping[str, Any]) -> Shapes:
    hidden, shared = config["hidden_size"], config["shared_intermediate_size"]
    experts, inner = config["num_local_experts"], config["intermediate_size"]
    shapes: Shapes = {}
    if experts:
        shapes = {
            "block_sparse_moe.router.layer.weight": (experts, hidden),
            "block_sparse_moe.input_linear.weight": (experts, 2 * inner, hidden),
            "block_sparse_moe.output_linear.weight": (experts, hidden, inner),
        }
    return shapes | {
        "shared_mlp.input_linear.weight": (2 * shared, hidden),
        "shared_mlp.output_linear.weight": (hidden, shared),
    }


def write_granite(folder: Path, dtype: str = "BF16", **changes: object) -> Path:
    """A random Granite-4 checkpoint; `changes` go into config.json."""
    config = GRANITE | changes
    return write_checkpoint(folder, config, granite_arrays(config), dtype)
