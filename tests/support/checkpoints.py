"""Tiny random checkpoints of the real architectures, written with numpy alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from quantkit.formats.tensors import TensorSource

TEKKEN_REGEX = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
CHATML = (
    "{% for m in messages %}<|im_start|>{{m.role}}\n{{m.content}}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NEMOTRON: dict[str, Any] = {
    "architectures": ["NemotronHForCausalLM"],
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*E",
    "vocab_size": 320,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "mamba_num_heads": 4,
    "mamba_head_dim": 8,
    "ssm_state_size": 16,
    "n_groups": 2,
    "conv_kernel": 4,
    "layer_norm_epsilon": 1e-5,
    "intermediate_size": 48,
    "max_position_embeddings": 262144,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "moe_latent_size": 16,
    "n_shared_experts": 1,
    "moe_shared_expert_intermediate_size": 20,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "n_group": 1,
    "topk_group": 1,
    "tie_word_embeddings": False,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 320,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 500000.0,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": True,
}

LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

Shapes = dict[str, tuple[int, ...]]
Arrays = dict[str, NDArray[np.float32]]
_SIZES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"") -> bytes:
    """A file of exactly this header, right or wrong, and these data bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


Dtypes = str | Mapping[str, str]
"""Of all tensors, or by name; those without a name are BF16."""


def write_safetensors(path: Path, tensors: Arrays, dtypes: Dtypes = "BF16") -> None:
    """Write `tensors`, whose values `dtypes` must hold exactly."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, values in tensors.items():
        dtype = dtypes if isinstance(dtypes, str) else dtypes.get(name, "BF16")
        if dtype == "BF16":
            raw = (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()
        else:
            raw = values.astype(_SIZES[dtype]).tobytes()
        offsets = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": offsets}
        data += raw
    path.write_bytes(safetensors_bytes(header, data))


def random_values(seed: int, *shape: int) -> NDArray[np.float32]:
    """Standard normal values that BF16 and F16 both hold exactly."""
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return np.float32(np.round(values * 32) / 32)


def random_arrays(shapes: Shapes) -> Arrays:
    return {name: random_values(seed, *shape) for seed, (name, shape) in enumerate(shapes.items())}


def prefixed(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def attention_shapes(config: Mapping[str, Any]) -> Shapes:
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim") or hidden // heads
    query, key = heads * head_dim, config["num_key_value_heads"] * head_dim
    return {
        "q_proj.weight": (query, hidden),
        "k_proj.weight": (key, hidden),
        "v_proj.weight": (key, hidden),
        "o_proj.weight": (hidden, query),
    }


def mamba_shapes(hidden: int, heads: int, inner: int, group_states: int, kernel: int) -> Shapes:
    """A Mamba-2 mixer; `group_states` is the number of groups times the size of a state."""
    channels = inner + 2 * group_states
    return {
        "in_proj.weight": (inner + channels + heads, hidden),
        "conv1d.weight": (channels, 1, kernel),
        "conv1d.bias": (channels,),
        "dt_bias": (heads,),
        "A_log": (heads,),
        "D": (heads,),
        "norm.weight": (inner,),
        "out_proj.weight": (hidden, inner),
    }


def decoder_shapes(config: Mapping[str, Any], layers: Iterable[tuple[Shapes, Shapes]]) -> Shapes:
    """Embeddings, layers of a mixer and a feed-forward network, norms, and an output."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for index, (mixer, feed_forward) in enumerate(layers):
        norms: list[Shapes] = [
            {f"{name}_layernorm.weight": (hidden,)} for name in ("input", "post_attention")
        ]
        shapes |= prefixed(f"model.layers.{index}.", norms[0] | mixer | norms[1] | feed_forward)
    shapes["model.norm.weight"] = (hidden,)
    return (
        shapes
        if config["tie_word_embeddings"]
        else shapes | {"lm_head.weight": (vocabulary, hidden)}
    )


def nemotron_arrays(config: Mapping[str, Any], root: str = "backbone") -> Arrays:
    """All tensors that a NemotronHForCausalLM of this `config` has, under their names."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    heads, inner = config["mamba_num_heads"], config["intermediate_size"]
    group_states = config["n_groups"] * config["ssm_state_size"]
    mixers = {
        "M": mamba_shapes(
            hidden, heads, heads * config["mamba_head_dim"], group_states, config["conv_kernel"]
        ),
        "*": attention_shapes(config),
        "-": {"up_proj.weight": (inner, hidden), "down_proj.weight": (hidden, inner)},
        "E": _moe_shapes(config),
    }
    shapes: Shapes = {f"{root}.embeddings.weight": (vocabulary, hidden)}
    for index, kind in enumerate(config["hybrid_override_pattern"]):
        layer = f"{root}.layers.{index}."
        shapes |= {f"{layer}norm.weight": (hidden,)} | prefixed(f"{layer}mixer.", mixers[kind])
    shapes |= {f"{root}.norm_f.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    return random_arrays(shapes)


def _moe_shapes(config: Mapping[str, Any]) -> Shapes:
    hidden, experts = config["hidden_size"], config["n_routed_experts"]
    latent, inner = config["moe_latent_size"], config["moe_intermediate_size"]
    shared = config["moe_shared_expert_intermediate_size"]
    shapes: Shapes = {
        "gate.weight": (experts, hidden),
        "gate.e_score_correction_bias": (experts,),
        "fc1_latent_proj.weight": (latent, hidden),
        "fc2_latent_proj.weight": (hidden, latent),
        "shared_experts.up_proj.weight": (shared, hidden),
        "shared_experts.down_proj.weight": (hidden, shared),
    }
    for expert in range(experts):
        shapes[f"experts.{expert}.up_proj.weight"] = (inner, latent)
        shapes[f"experts.{expert}.down_proj.weight"] = (latent, inner)
    return shapes


def with_prediction_head(arrays: Arrays) -> Arrays:
    """`arrays` of the layers ME*E and a multi-token prediction head made of layers 2 and 1."""
    head = {
        f"mtp.layers.{number}.{name.removeprefix(layer)}": values * 2
        for number, layer in enumerate(("backbone.layers.2.", "backbone.layers.1."))
        for name, values in arrays.items()
        if name.startswith(layer)
    }
    norm = arrays["backbone.norm_f.weight"]
    for name in ("0.enorm", "0.hnorm", "1.final_layernorm"):
        head[f"mtp.layers.{name}.weight"] = norm
    head["mtp.layers.0.eh_proj.weight"] = random_values(9, len(norm), 2 * len(norm))
    return arrays | head


def llama_arrays(config: Mapping[str, Any]) -> Arrays:
    """All tensors that a LlamaForCausalLM of this `config` has, under their names."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    attention = prefixed("self_attn.", attention_shapes(config))
    mlp: Shapes = {
        "mlp.gate_proj.weight": (inner, hidden),
        "mlp.up_proj.weight": (inner, hidden),
        "mlp.down_proj.weight": (hidden, inner),
    }
    return random_arrays(decoder_shapes(config, [(attention, mlp)] * config["num_hidden_layers"]))


def added_token(token_id: int, text: str, **changes: object) -> dict[str, Any]:
    """An entry of a tokenizer.json's added_tokens: special unless `changes` say otherwise."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, **flags, "special": True} | changes


def byte_level_tokenizer(*more: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json: 4 special tokens, the 256 bytes, 3 merges, one token that is not special.

    `more` added tokens begin at id 264.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    special = ["<unk>", "<s>", "<|im_start|>", "<|im_end|>"]
    words = [*special, *alphabet, "th", "the", "\u0120the"]
    split = {"type": "Split", "pattern": {"Regex": TEKKEN_REGEX}}
    return {
        "version": "1.0",
        "added_tokens": [
            *(added_token(i, text) for i, text in enumerate(special)),
            added_token(len(words), "<think>", special=False),
            *more,
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                split | {"behavior": "Isolated", "invert": False},
                BYTE_LEVEL | {"use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": [["t", "h"], ["th", "e"], ["\u0120", "the"]],
        },
    }


def write_tokenizer(folder: Path) -> None:
    """A byte-level BPE split like tekken, with ChatML and without BOS."""
    (folder / "tokenizer.json").write_text(json.dumps(byte_level_tokenizer()), encoding="utf-8")
    options = {"bos_token": None, "eos_token": "<|im_end|>", "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(options), encoding="utf-8")


def write_checkpoint(
    folder: Path,
    config: Mapping[str, Any],
    tensors: Arrays,
    dtype: Dtypes = "BF16",
    shards: int = 1,
) -> Path:
    """A complete checkpoint in `folder`, with an index where there are several shards."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = list(tensors)[shard::shards]
        write_safetensors(folder / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def block_of(source: TensorSource, index: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and type of each tensor of a block, by what follows `blk.INDEX.`, as in the file."""
    prefix = f"blk.{index}."
    return {
        info.name.removeprefix(prefix): (info.shape, info.type_name)
        for info in source.tensors
        if info.name.startswith(prefix)
    }


def write_nemotron(folder: Path, dtype: str = "BF16", shards: int = 1, **changes: object) -> Path:
    """A random Nemotron-H checkpoint; `changes` go into config.json."""
    config = NEMOTRON | changes
    return write_checkpoint(folder, config, nemotron_arrays(config), dtype, shards)


def write_llama(folder: Path, dtype: str = "BF16", shards: int = 1, **changes: object) -> Path:
    """A random Llama checkpoint; `changes` go into config.json."""
    config = LLAMA | changes
    return write_checkpoint(folder, config, llama_arrays(config), dtype, shards)
