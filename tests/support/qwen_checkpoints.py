"""Tiny random Qwen checkpoints, written with numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import Arrays, llama_arrays, random_values, write_checkpoint

QWEN2: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 32768,
    "sliding_window": 32768,
    "max_window_layers": 1,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}
QWEN3: dict[str, Any] = QWEN2 | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 16,
    "attention_bias": False,
    "sliding_window": None,
}
QWEN3_MOE: dict[str, Any] = QWEN3 | {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 24,
    "norm_topk_prob": True,
    "num_experts": 4,
    "num_experts_per_tok": 2,
}


def qwen_arrays(config: Mapping[str, Any]) -> Arrays:
    """All tensors that a model of this `config` has, under the names that Qwen released."""
    arrays = llama_arrays(config)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}."
        for seed, letter in enumerate("qkv" if config["model_type"] == "qwen2" else ""):
            name = f"{layer}self_attn.{letter}_proj"
            width = arrays[f"{name}.weight"].shape[0]
            arrays[f"{name}.bias"] = random_values(1000 + 10 * index + seed, width)
        for seed, letter in enumerate("qk" if config["model_type"] != "qwen2" else ""):
            name = f"{layer}self_attn.{letter}_norm.weight"
            arrays[name] = random_values(2000 + 10 * index + seed, head_dim)
        if config["model_type"] == "qwen3_moe":
            for name in ("gate", "up", "down"):
                del arrays[f"{layer}mlp.{name}_proj.weight"]
            arrays |= _experts(config, f"{layer}mlp.", seed=3000 + 100 * index)
    return arrays


def _experts(config: Mapping[str, Any], mlp: str, seed: int) -> Arrays:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    arrays = {f"{mlp}gate.weight": random_values(seed, config["num_experts"], hidden)}
    shapes = {"gate": (inner, hidden), "up": (inner, hidden), "down": (hidden, inner)}
    for expert in range(config["num_experts"]):
        for name, shape in shapes.items():
            seed += 1
            arrays[f"{mlp}experts.{expert}.{name}_proj.weight"] = random_values(seed, *shape)
    return arrays


def merged_experts(arrays: Arrays, config: Mapping[str, Any], ending: str = "") -> Arrays:
    """The same model with all experts of a layer in one tensor, gate's rows before up's."""
    merged = {name: values for name, values in arrays.items() if ".mlp.experts." not in name}
    for index in range(config["num_hidden_layers"]):
        prefix, experts = f"model.layers.{index}.mlp.experts", range(config["num_experts"])
        gate, up, down = (
            np.stack([arrays[f"{prefix}.{expert}.{name}_proj.weight"] for expert in experts])
            for name in ("gate", "up", "down")
        )
        merged[f"{prefix}.gate_up_proj{ending}"] = np.concatenate([gate, up], axis=1)
        merged[f"{prefix}.down_proj{ending}"] = down
    return merged


def write_qwen(
    folder: Path, config: Mapping[str, Any], dtype: str = "BF16", shards: int = 1, **changes: object
) -> Path:
    """A random checkpoint of `config`, with `changes` in config.json."""
    config = {**config, **changes}
    return write_checkpoint(folder, config, qwen_arrays(config), dtype, shards)
