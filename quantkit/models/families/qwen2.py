"""Qwen2 and Qwen2.5, dense: GGUF architecture `qwen2`; and what the Qwen families share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from quantkit.core.errors import InputError
from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    check_activation,
    config_int,
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
from quantkit.models.families.rope import check_no_unread_rope

_READ_BIASES = tuple(f".self_attn.{letter}_proj.bias" for letter in "qkv")


class Qwen2:
    """Qwen2ForCausalLM: like Llama, but with biases on query, key and value and rows in place."""

    architectures = ("Qwen2ForCausalLM",)

    def metadata(self, config: Config) -> Metadata:
        check_dense_config(config)
        sizes = decoder_sizes(config)
        if sizes.heads * sizes.head_dim != sizes.hidden:
            raise InputError(
                f"config.json: {sizes.heads} heads of {sizes.head_dim} are not the hidden_size "
                f"{sizes.hidden}, and llama.cpp loads no such qwen2 model"
            )
        return with_prefix("qwen2", decoder_keys(config))

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        check_qwen_tensors(stored)
        sizes, inner = decoder_sizes(config), config_int(config, "intermediate_size")
        rules = Rules(stored)
        add_embedding(rules, sizes)
        for index in range(sizes.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            add_norm(rules, f"{block}attn_norm", f"{layer}input_layernorm", sizes.hidden)
            add_attention(rules, sizes, block, f"{layer}self_attn.", interleaved=False)
            add_norm(rules, f"{block}ffn_norm", f"{layer}post_attention_layernorm", sizes.hidden)
            add_gated_mlp(rules, sizes.hidden, inner, block, f"{layer}mlp.")
        add_output(rules, config, sizes)
        return rules.finish()


def _sliding_layers(config: Config) -> Sequence[int]:
    """Layers that attend to a window where config.json uses one."""
    kinds = config.get("layer_types")
    if not isinstance(kinds, list):
        return range(config_int(config, "num_hidden_layers"))
    return [index for index, kind in enumerate(kinds) if kind == "sliding_attention"]


def check_dense_config(config: Config) -> None:
    """`check_qwen_config` of the dense families, whose first layers may attend to everything."""
    check_qwen_config(config, sliding=_sliding_layers(config))


def check_qwen_config(config: Config, sliding: Sequence[int]) -> None:
    """Refuse what llama.cpp's Qwen graphs would not compute, although its converter takes it.

    Args:
        sliding: layers that attend to a window where config.json uses one.

    Raises:
        InputError: a sliding window shorter than the context, another activation than SiLU,
            attention in both directions, a reranker, or rope settings that are not read.
    """
    check_activation(config)
    if config.get("is_causal") is False:
        raise InputError(
            "config.json: is_causal is false, so this is an embedding model; quantkit builds "
            "models that generate text: convert it with llama.cpp"
        )
    origin = str(config.get("_name_or_path") or "")
    if "qwen3-reranker" in origin.lower():
        raise InputError(
            f"config.json: the model comes from {origin!r}, a reranker, whose head llama.cpp makes "
            "from two rows of the output: convert it with llama.cpp and give the GGUF to --model"
        )
    context = config_int(config, "max_position_embeddings")
    if config.get("use_sliding_window") and config.get("sliding_window") is not None:
        window = config_int(config, "sliding_window")
        if sliding and window < context:
            raise InputError(
                f"config.json: {len(sliding)} layers from layer {sliding[0]} on attend to a window "
                f"of {window} tokens of {context}, but llama.cpp attends to all of them in Qwen "
                "models; set use_sliding_window to false to accept that"
            )
    check_no_unread_rope(config)


def check_qwen_tensors(stored: Mapping[str, StoredTensor]) -> None:
    """Refuse tensors that llama.cpp's Qwen graphs do not load.

    Raises:
        InputError: names without `model.`, as embedding models have them, or a bias elsewhere than
            on query, key and value.
    """
    if "embed_tokens.weight" in stored and "model.embed_tokens.weight" not in stored:
        raise InputError(
            "the checkpoint's tensors lack the prefix 'model.' (embed_tokens.weight), so this is "
            "an encoder without an output, an embedding model for example; quantkit builds models "
            "that generate text: convert it with llama.cpp"
        )
    for name in stored:
        if name.endswith(".bias") and not name.endswith(_READ_BIASES):
            raise InputError(
                f"the checkpoint has the bias {name}, but llama.cpp's Qwen models have biases on "
                "query, key and value only and it would not load the GGUF"
            )
