"""Small random Granite-4 models of every kind; see `oracle_models`. Needs torch and transformers.

Saved by transformers, then config.json is spelled as in IBM's releases: llama.cpp's converter does
not know the names of layers that transformers 5 writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import GraniteMoeHybridConfig, GraniteMoeHybridForCausalLM

GRANITE: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 48,
    "shared_intermediate_size": 40,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
    "max_position_embeddings": 16384,
    "rms_norm_eps": 1e-5,
    "attention_multiplier": 0.0625,
    "embedding_multiplier": 12,
    "residual_multiplier": 0.22,
    "logits_scaling": 6.0,
    "position_embedding_type": "nope",
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
HYBRID = ["mamba", "attention", "mamba", "attention"]
ATTENTION = ["attention"] * 2
DENSE = {
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "intermediate_size": 96,
    "shared_intermediate_size": 96,
    "tie_word_embeddings": True,
}
ROPE = {"position_embedding_type": "rope"}

Save = Callable[..., None]


def write(root: Path, save: Save) -> None:
    """One folder in `root` for each model; `save` writes weights, config.json and a tokenizer."""
    _write(root / "granite-hybrid-moe", save, HYBRID)
    _write(root / "granite-hybrid-groups", save, HYBRID, torch.float32, mamba_n_groups=2)
    _write(root / "granite-hybrid-dense", save, HYBRID, **DENSE)
    _write(root / "granite-attention-moe", save, ATTENTION, torch.float16, **ROPE)
    biased = DENSE | ROPE | {"attention_bias": True}
    _write(root / "granite-attention-dense", save, ATTENTION, **biased)
    # Models that IBM has not released, and llama.cpp's converter gets wrong.
    _write(root / "granite-hybrid-odd", save, HYBRID, **DENSE | {"vocab_size": 509})
    _write(root / "granite-hybrid-rope", save, HYBRID, **ROPE)
    _write(root / "granite-attention-nope", save, ATTENTION, **DENSE)
    unused = {"num_experts_per_tok": 2, "intermediate_size": 160}
    _write(root / "granite-hybrid-unused", save, HYBRID, **DENSE | unused)


def _write(
    folder: Path,
    save: Save,
    layers: list[str],
    dtype: torch.dtype = torch.bfloat16,
    **changes: object,
) -> None:
    names = {"mamba": "linear_attention", "attention": "full_attention"}
    config = GraniteMoeHybridConfig(
        **GRANITE | changes,
        num_hidden_layers=len(layers),
        layer_types=[names[kind] for kind in layers],
    )
    save(GraniteMoeHybridForCausalLM(config), folder, dtype)
    written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del written["time_step_limit"], written["rope_parameters"]
    written |= {"layer_types": layers, "rope_theta": 10000, "rope_scaling": None}
    (folder / "config.json").write_text(json.dumps(written), encoding="utf-8")
