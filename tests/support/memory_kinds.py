"""Tiny models of random weights, one for each kind of memory that llama.cpp has.

They have the demo model's tokenizer. Weights are small, so that logits stay moderate, and not so
small that what a layer attends to would not show in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from demo_artifacts import write_demo
from models import write_gguf

from quantkit.formats.tensors import Metadata, MetaValue
from quantkit.models.choose import choose_model, open_source

VOCABULARY, WIDTH, HEAD = 2048, 64, 32
WINDOW = 48
"""Tokens that a sliding-window layer attends to."""
KINDS = ("full", "windows", "mixed", "mla", "recurrent", "hybrid")
WINDOWED = ("windows", "mixed")

Shapes = dict[str, tuple[int, ...]]
_COMMON = {
    "context_length": 131072,
    "embedding_length": WIDTH,
    "feed_forward_length": 2 * WIDTH,
    "vocab_size": VOCABULARY,
}
_HEADS = {
    "attention.head_count": 2,
    "attention.head_count_kv": 1,
    "attention.key_length": HEAD,
    "attention.value_length": HEAD,
    "rope.dimension_count": HEAD,
}


def write_kind(path: Path, kind: str) -> Path:
    """A model whose context has that kind of memory, one of `KINDS`, in F32."""
    if kind == "hybrid":
        return write_demo(path)
    model = {
        "full": _llama,
        "windows": lambda: _gemma(layers=1),  # the sixth layer would be the first full one
        "mixed": lambda: _gemma(layers=7),
        "mla": _deepseek,
        "recurrent": _mamba,
    }[kind]()
    return _write(path, model, {})


def write_gemma(path: Path, layers: int, **changes: MetaValue) -> Path:
    """A Gemma 3 in F32; `changes` are keys of the architecture, with `__` for a dot."""
    return _write(path, _gemma(layers), changes)


def _write(path: Path, model: _Model, changes: Mapping[str, MetaValue]) -> Path:
    architecture, numbers, shapes = model
    source = open_source(choose_model("demo"))
    metadata: Metadata = {
        key: value for key, value in source.metadata.items() if key.startswith("tokenizer.")
    }
    metadata["general.architecture"] = MetaValue("str", architecture)
    metadata |= {
        f"{architecture}.{key}": MetaValue("u32" if isinstance(value, int) else "f32", value)
        for key, value in numbers.items()
    }
    metadata |= {f"{architecture}.{key.replace('__', '.')}": v for key, v in changes.items()}
    random = np.random.default_rng(1)
    every = {
        "token_embd.weight": (VOCABULARY, WIDTH),
        "output_norm.weight": (WIDTH,),
        "output.weight": (VOCABULARY, WIDTH),
        **shapes,
    }
    arrays = {
        name: np.ones(shape, np.float32)
        if name.endswith("norm.weight")
        else random.standard_normal(shape, np.float32) / np.float32(8)
        for name, shape in every.items()
    }
    for name in arrays:
        if name.endswith("ssm_a"):  # a state decays
            arrays[name] = -np.abs(arrays[name]) - np.float32(1 / 8)
    return write_gguf(path, metadata, arrays)


def _layers(count: int, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {
        f"blk.{layer}.{name}": shape for layer in range(count) for name, shape in shapes.items()
    }


_ATTENTION: Shapes = {
    "attn_norm.weight": (WIDTH,),
    "attn_q.weight": (2 * HEAD, WIDTH),
    "attn_k.weight": (HEAD, WIDTH),
    "attn_v.weight": (HEAD, WIDTH),
    "attn_output.weight": (WIDTH, 2 * HEAD),
}
_DENSE: Shapes = {
    "ffn_norm.weight": (WIDTH,),
    "ffn_gate.weight": (2 * WIDTH, WIDTH),
    "ffn_up.weight": (2 * WIDTH, WIDTH),
    "ffn_down.weight": (WIDTH, 2 * WIDTH),
}
_Model = tuple[str, dict[str, int | float], Shapes]
_EPSILON = {"attention.layer_norm_rms_epsilon": 1e-6}


def _llama() -> _Model:
    return (
        "llama",
        {**_COMMON, **_HEADS, **_EPSILON, "block_count": 2},
        _layers(2, {**_ATTENTION, **_DENSE}),
    )


def _gemma(layers: int) -> _Model:
    numbers = {**_COMMON, **_HEADS, **_EPSILON, "block_count": layers}
    norms = {f"{name}.weight": (WIDTH,) for name in ("post_attention_norm", "post_ffw_norm")}
    heads = {f"{name}.weight": (HEAD,) for name in ("attn_k_norm", "attn_q_norm")}
    shapes = _layers(layers, {**_ATTENTION, **_DENSE, **norms, **heads})
    return "gemma3", {**numbers, "attention.sliding_window": WINDOW}, shapes


def _deepseek() -> _Model:
    rank, rope = 64, 16
    numbers = {
        **_COMMON,
        **_EPSILON,
        "block_count": 2,
        "leading_dense_block_count": 2,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.key_length": rank + rope,
        "attention.value_length": rank,
        "attention.key_length_mla": HEAD,
        "attention.value_length_mla": HEAD,
        "attention.q_lora_rank": HEAD,
        "attention.kv_lora_rank": rank,
        "rope.dimension_count": rope,
        "expert_count": 2,
        "expert_used_count": 1,
        "expert_feed_forward_length": WIDTH,
        "expert_shared_count": 1,
    }
    shapes = _layers(
        2,
        {
            "attn_norm.weight": (WIDTH,),
            "attn_q_a.weight": (HEAD, WIDTH),
            "attn_q_a_norm.weight": (HEAD,),
            "attn_q_b.weight": (2 * HEAD, HEAD),
            "attn_kv_a_mqa.weight": (rank + rope, WIDTH),
            "attn_kv_a_norm.weight": (rank,),
            "attn_k_b.weight": (2, rank, HEAD - rope),
            "attn_v_b.weight": (2, HEAD, rank),
            "attn_output.weight": (WIDTH, 2 * HEAD),
            **_DENSE,
        },
    )
    return "deepseek2", numbers, shapes


def _mamba() -> _Model:
    inner, state, rank = 2 * WIDTH, 16, 8
    numbers = {
        **_COMMON,
        **_EPSILON,
        "block_count": 2,
        "attention.head_count": 0,
        "feed_forward_length": 0,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": inner,
        "ssm.state_size": state,
        "ssm.time_step_rank": rank,
    }
    shapes = _layers(
        2,
        {
            "attn_norm.weight": (WIDTH,),
            "ssm_in.weight": (2 * inner, WIDTH),
            "ssm_conv1d.weight": (inner, 4),
            "ssm_conv1d.bias": (inner,),
            "ssm_x.weight": (rank + 2 * state, inner),
            "ssm_dt.weight": (inner, rank),
            "ssm_dt.bias": (inner,),
            "ssm_a": (inner, state),
            "ssm_d": (inner,),
            "ssm_out.weight": (WIDTH, inner),
        },
    )
    return "mamba", numbers, shapes
