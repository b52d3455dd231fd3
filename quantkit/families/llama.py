"""Llama and Mistral, dense: GGUF architecture `llama`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quantkit.errors import InputError
from quantkit.families.base import (
    FILE_TYPE_BF16,
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    config_float,
    config_int,
    meta,
    rotary_row_order,
)
from quantkit.values import Metadata


@dataclass(frozen=True)
class _Geometry:
    layers: int
    hidden: int
    inner: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int


class Llama:
    """LlamaForCausalLM and MistralForCausalLM."""

    architectures = ("LlamaForCausalLM", "MistralForCausalLM")

    def metadata(self, config: Config) -> Metadata:
        g = _geometry(config)
        rope = _rope(config)
        keys: Metadata = {
            "block_count": meta("u32", g.layers),
            "context_length": meta("u32", config_int(config, "max_position_embeddings")),
            "embedding_length": meta("u32", g.hidden),
            "feed_forward_length": meta("u32", g.inner),
            "attention.head_count": meta("u32", g.heads),
            "attention.head_count_kv": meta("u32", g.kv_heads),
            "attention.layer_norm_rms_epsilon": meta("f32", config_float(config, "rms_norm_eps")),
            "vocab_size": meta("u32", g.vocabulary),
            "rope.dimension_count": meta("u32", g.head_dim),
        }
        if config.get("head_dim") is not None:
            keys["attention.key_length"] = meta("u32", g.head_dim)
            keys["attention.value_length"] = meta("u32", g.head_dim)
        if rope.get("rope_theta") is not None:
            keys["rope.freq_base"] = meta("f32", config_float(rope, "rope_theta"))
        keys |= _rope_scaling_keys(rope)
        return {
            "general.architecture": meta("str", "llama"),
            "general.file_type": meta("u32", FILE_TYPE_BF16),
        } | {f"llama.{key}": value for key, value in keys.items()}

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        g = _geometry(config)
        rules = Rules(stored)
        rope = _rope(config)
        if _rope_type(rope) == "llama3":
            rules.add_constant("rope_freqs.weight", llama3_frequency_factors(rope, g.head_dim))
        rules.add("token_embd.weight", "model.embed_tokens.weight", (g.vocabulary, g.hidden))
        for index in range(g.layers):
            _add_layer(rules, g, f"blk.{index}.", f"model.layers.{index}.")
        rules.add("output_norm.weight", "model.norm.weight", (g.hidden,))
        # Tied: llama.cpp takes token_embd for the output where output.weight is absent.
        if config.get("tie_word_embeddings"):
            rules.drop("lm_head.weight")
        else:
            rules.add("output.weight", "lm_head.weight", (g.vocabulary, g.hidden))
        for name in stored:
            if name.endswith(".rotary_emb.inv_freq"):  # Recomputed from rope_theta everywhere.
                rules.drop(name)
        return rules.finish()


def _geometry(config: Config) -> _Geometry:
    hidden = config_int(config, "hidden_size")
    heads = config_int(config, "num_attention_heads")
    if config.get("head_dim") is None and hidden % heads:
        raise InputError(f"config.json: hidden_size {hidden} does not divide into {heads} heads")
    return _Geometry(
        layers=config_int(config, "num_hidden_layers"),
        hidden=hidden,
        inner=config_int(config, "intermediate_size"),
        vocabulary=config_int(config, "vocab_size"),
        heads=heads,
        kv_heads=config_int(config, "num_key_value_heads", "num_attention_heads"),
        head_dim=config_int({"default": hidden // heads, **config}, "head_dim", "default"),
    )


def _add_layer(rules: Rules, g: _Geometry, block: str, layer: str) -> None:
    rules.add(f"{block}attn_norm.weight", f"{layer}input_layernorm.weight", (g.hidden,))
    for letter, heads in (("q", g.heads), ("k", g.kv_heads), ("v", g.kv_heads)):
        rows = heads * g.head_dim
        order = None if letter == "v" else rotary_row_order(heads, g.head_dim)
        part = f"{layer}self_attn.{letter}_proj."
        rules.add(
            f"{block}attn_{letter}.weight", f"{part}weight", (rows, g.hidden), row_order=order
        )
        if rules.has(f"{part}bias"):
            rules.add(f"{block}attn_{letter}.bias", f"{part}bias", (rows,), row_order=order)
    out = f"{layer}self_attn.o_proj."
    rules.add(f"{block}attn_output.weight", f"{out}weight", (g.hidden, g.heads * g.head_dim))
    if rules.has(f"{out}bias"):
        rules.add(f"{block}attn_output.bias", f"{out}bias", (g.hidden,))
    rules.add(f"{block}ffn_norm.weight", f"{layer}post_attention_layernorm.weight", (g.hidden,))
    for name in ("gate", "up", "down"):
        shape = (g.hidden, g.inner) if name == "down" else (g.inner, g.hidden)
        part = f"{layer}mlp.{name}_proj."
        rules.add(f"{block}ffn_{name}.weight", f"{part}weight", shape)
        if rules.has(f"{part}bias"):
            rules.add(f"{block}ffn_{name}.bias", f"{part}bias", shape[:1])


def _rope(config: Config) -> dict[str, Any]:
    """The rotary parameters in one spelling.

    transformers 5 writes `rope_parameters` with `rope_theta` inside; before, `rope_theta` stood
    beside an optional `rope_scaling`, whose `rope_type` was once called `type`.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise InputError(f"config.json: {given!r} are no rope parameters; expected an object")
    rope = dict(given)
    if rope.get("rope_theta") is None and config.get("rope_theta") is not None:
        rope["rope_theta"] = config["rope_theta"]
    return rope


def _rope_type(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type", rope.get("type")) or "default").lower()


def _rope_scaling_keys(rope: Mapping[str, Any]) -> Metadata:
    kind = _rope_type(rope)
    if kind in ("default", "llama3"):  # llama3 is a tensor of factors instead.
        return {}
    if kind not in ("linear", "yarn"):
        raise InputError(
            f"config.json: rope scaling of type {kind!r} is not supported; known are linear, yarn "
            "and llama3: convert the model with llama.cpp and give the GGUF to --model"
        )
    keys: Metadata = {
        "rope.scaling.type": meta("str", kind),
        "rope.scaling.factor": meta("f32", config_float(rope, "factor")),
    }
    if kind == "yarn":
        original = config_int(rope, "original_max_position_embeddings")
        keys["rope.scaling.original_context_length"] = meta("u32", original)
        for key, source in (
            ("yarn_ext_factor", "extrapolation_factor"),
            ("yarn_attn_factor", "attention_factor"),
            ("yarn_beta_fast", "beta_fast"),
            ("yarn_beta_slow", "beta_slow"),
        ):
            if rope.get(source) is not None:
                keys[f"rope.scaling.{key}"] = meta("f32", config_float(rope, source))
    return keys


def llama3_frequency_factors(rope: Mapping[str, Any], head_dim: int) -> NDArray[np.float32]:
    """What llama.cpp divides each rotary frequency by, shape (head_dim / 2,).

    Frequencies with a wavelength beyond the original context are divided by `factor`, short ones
    are kept, and those between are interpolated (Llama 3.1, `ROPE_INIT_FUNCTIONS["llama3"]`).

    Raises:
        InputError: a parameter is no positive number, or the two bounds are the wrong way round.
    """
    options = {
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        **rope,
    }
    base, factor = config_float(options, "rope_theta"), config_float(options, "factor")
    low = config_float(options, "low_freq_factor")
    high = config_float(options, "high_freq_factor")
    original = config_float(options, "original_max_position_embeddings")
    if low >= high:
        raise InputError(
            f"config.json: low_freq_factor {low} must be below high_freq_factor {high}"
        )
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    wavelength = 2 * math.pi * np.float32(base) ** exponents
    smooth = (original / wavelength - low) / (high - low)
    between = 1 / ((1 - smooth) / factor + smooth)
    factors = np.where(wavelength > original / low, factor, between)
    return np.where(wavelength < original / high, 1.0, factors).astype(np.float32)
