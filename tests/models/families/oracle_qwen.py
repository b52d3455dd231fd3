"""Small random Qwen models for `oracle_models.py`, which runs with a Python that has torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "bos_token_id": None,
    "eos_token_id": 4,
}
EXPERTS: dict[str, Any] = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 4096,
}
THETA = {"rope_type": "default", "rope_theta": 1000000.0}


def write(root: Path, save: Callable[..., None], edited: Callable[..., None]) -> None:
    """One folder for each model; `save` and `edited` are those of `oracle_models.py`."""
    tied = Qwen2Config(**SIZES, rope_parameters=THETA, tie_word_embeddings=True)
    save(Qwen2ForCausalLM(tied), root / "qwen2-tied")
    stretched = SIZES | {"max_position_embeddings": 16384}
    yarn = Qwen2Config(**stretched, rope_parameters=YARN, tie_word_embeddings=False)
    save(Qwen2ForCausalLM(yarn), root / "qwen2-yarn")
    edited(root / "qwen2-yarn", root / "qwen2-old", _like_qwen_2)

    for name, dtype, is_tied in (
        ("qwen3-tied", torch.bfloat16, True),
        ("qwen3-untied", torch.float16, False),
    ):
        dense = Qwen3Config(
            **SIZES, head_dim=32, rope_parameters=THETA, tie_word_embeddings=is_tied
        )
        save(Qwen3ForCausalLM(dense), root / name, dtype)
    edited(root / "qwen3-tied", root / "qwen3-twice", _like_qwen3_small)

    mixture = Qwen3MoeConfig(
        **SIZES, **EXPERTS, head_dim=32, rope_parameters=THETA, tie_word_embeddings=False
    )
    save(Qwen3MoeForCausalLM(mixture), root / "qwen3moe", torch.bfloat16, "200KB")
    save(Qwen3MoeForCausalLM(mixture), root / "qwen3moe-merged")
    edited(root / "qwen3moe-merged", root / "qwen3moe-merged", _merge_experts)


def _like_qwen_2(folder: Path, config: dict[str, Any]) -> None:
    """Qwen2.5's own config.json: rope settings apart, a window that is named but not used."""
    del folder
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {
        "type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 4096,
    }
    for key in ("layer_types", "dtype", "pad_token_id"):
        config.pop(key, None)
    config |= {
        "use_sliding_window": False,
        "sliding_window": 1024,
        "max_window_layers": 1,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
    }


def _like_qwen3_small(folder: Path, config: dict[str, Any]) -> None:
    """Qwen3 0.6B: the embeddings are tied, and lm_head.weight is stored all the same."""
    del config
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _merge_experts(folder: Path, config: dict[str, Any]) -> None:
    """All experts of a layer in one tensor, as transformers 5 holds them in memory."""
    tensors = load_file(folder / "model.safetensors")
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}.mlp.experts"
        experts = range(EXPERTS["num_experts"])
        gates, ups, downs = (
            torch.stack(
                [tensors.pop(f"{prefix}.{expert}.{name}_proj.weight") for expert in experts]
            )
            for name in ("gate", "up", "down")
        )
        tensors[f"{prefix}.gate_up_proj"] = torch.cat([gates, ups], dim=1)
        tensors[f"{prefix}.down_proj"] = downs.contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
