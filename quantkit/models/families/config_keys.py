"""What becomes of the keys of a config.json that no family reads.

A key that nobody reads may still change the model: transformers computes it, llama.cpp does not,
and the GGUF is another model without a word. So every key is read by its family, harmless,
at its default, or refused; docs/adding-a-family.md has the rule.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

from quantkit.models.families.base import Config, Family, StoredTensor, refuse_if

HARMLESS: Mapping[str, tuple[str, ...]] = {
    "what the checkpoint is and who wrote it": (
        "architectures", "model_type", "_name_or_path", "name_or_path", "_commit_hash",
        "transformers_version", "transformers.js_config", "torch_dtype", "dtype", "auto_map",
        "finetuning_task", "is_llama_config", "tokenizer_class", "unsloth_fixed",
        "unsloth_version", "model_max_length", "max_sequence_length", "seq_length",
    ),
    "training: starting values, dropout, losses": (
        "initializer_range", "init_method", "rescale_prenorm_residual", "router_aux_loss_coef",
        "router_jitter_noise", "tf_legacy_loss", "problem_type", "gradient_checkpointing",
    ),
    "how the same result is computed, and in which precision": (
        "use_cache", "cache_implementation", "pretraining_tp", "torchscript", "use_bfloat16",
        "attn_implementation", "_attn_implementation", "_attn_implementation_autoset",
        "_flash_attn_2_enabled", "use_flash_attn", "use_mamba_kernels", "chunk_size",
        "chunk_size_feed_forward", "mamba_chunk_size", "mamba_ssm_cache_dtype",
        "num_logits_to_keep", "residual_in_fp32", "fused_qkv", "moe_shared_expert_overlap",
    ),
    "what a call returns, and the names of classes": (
        "return_dict", "return_dict_in_generate", "id2label", "label2id", "num_labels",
        "is_decoder", "task_specific_params",
    ),
    "token ids and prompts, which the tokenizer's metadata takes care of": (
        "prefix", "forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens",
        "begin_suppress_tokens",
    ),
    "sampling, which whoever runs the model chooses": (
        "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups",
        "diversity_penalty", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
        "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
        "num_return_sequences", "remove_invalid_values", "exponential_decay_length_penalty",
    ),
    "refused by itself": ("quantization_config",),
}  # fmt: skip
"""Reason → keys that change no weight and no logit of any family."""
_HARMLESS = frozenset(chain.from_iterable(HARMLESS.values()))
_HARMLESS_ENDS = ("_token_id", "_dropout", "_dropout_prob", "_pdrop")
_HARMLESS_STARTS = ("output_",)

CHANGES: Mapping[str, tuple[object, ...]] = {
    # attention
    "sliding_window": (), "layer_types": (), "attention_chunk_size": (), "attention_sinks": (),
    "attn_temperature_tuning": (), "attn_logit_softcapping": (), "query_pre_attn_scalar": (),
    "attention_multiplier": (1.0,), "attention_head_dim": (), "clip_qkv": (), "use_qk_norm": (),
    "qk_norm": (), "qk_layernorm": (), "qkv_bias": (), "attention_bias": (), "bias": (),
    "use_bidirectional_attention": (), "add_cross_attention": (),
    "kv_lora_rank": (), "q_lora_rank": (), "num_kv_shared_layers": (), "pruned_heads": (),
    # positions
    "partial_rotary_factor": (1.0,), "rotary_pct": (1.0,), "rope_interleaved": (),
    "rope_interleave": (), "no_rope_layers": (), "no_rope_layer_interval": (), "alibi": (),
    "position_embedding_type": ("rope", "rotary"), "use_mrope": (), "use_scaled_rope": (),
    # the feed-forward network
    "hidden_activation": ("silu", "swish"), "activation_function": ("silu", "swish", "swiglu"),
    "mlp_bias": (), "num_local_experts": (1,), "num_experts": (1,), "n_routed_experts": (1,),
    "n_shared_experts": (), "shared_expert_intermediate_size": (), "first_k_dense_replace": (),
    "swiglu_limit": (), "parallel_residual": (), "use_parallel_residual": (),
    # scales, norms, and layers more or less
    "final_logit_softcapping": (), "logit_scale": (1.0,), "logits_scaling": (1.0,),
    "embedding_multiplier": (1.0,), "residual_multiplier": (1.0,), "scale_emb": (1.0,),
    "scale_depth": (), "dim_model_base": (), "normalize_embedding": (), "add_unit_offset": (),
    "post_norm": (), "norm_type": ("rmsnorm", "rms_norm", "RMSNorm"),
    "normalization_function": ("rmsnorm",),
    "num_nextn_predict_layers": (), "draft_vocab_size": (), "adapter_token_ids": (),
}  # fmt: skip
"""Keys of other architectures, or of code beside a checkpoint, that change what is computed, each
with the values that change nothing; false, 0 and empty never do."""

_BIASES = {
    "attention_bias": tuple(f".{letter}_proj.bias" for letter in "qkvo"),
    "mlp_bias": tuple(f".{name}_proj.bias" for name in ("gate", "up", "down")),
}


def unread_keys(family: Family, raw: Config, config: Config, defaults: Config) -> tuple[str, ...]:
    """Keys that neither the family nor transformers knows; whoever converts is told of them.

    Args:
        raw: config.json.
        config: the same with the defaults of transformers.
        defaults: what transformers takes where config.json has none of the keys.

    Raises:
        InputError: a key changes the model, and llama.cpp would compute it otherwise.
    """
    for key, values in family.fixed.items():
        given = config.get(key)
        refuse_if(
            given is not None and given not in values,
            f"{key} is {given!r}, but llama.cpp computes this architecture with "
            f"{values[0]!r} only: the GGUF would be another model",
        )
    unknown = []
    for key, value in raw.items():
        if value is None or key in family.reads or key in family.fixed or is_harmless(key):
            continue
        if key in defaults:
            refuse_if(value != defaults[key], _refusal(key, value, f"not {defaults[key]!r}"))
        elif key in CHANGES:
            neutral = not value or value in CHANGES[key] or _is_full_attention(value)
            refuse_if(not neutral, _refusal(key, value, "set"))
        else:
            unknown.append(key)
    return tuple(unknown)


def _is_full_attention(value: object) -> bool:
    """Whether it is `layer_types` of a model whose layers are all of the usual kind."""
    return isinstance(value, list) and all(kind == "full_attention" for kind in value)


def is_harmless(key: str) -> bool:
    """Whether a key changes nothing, whatever its value is."""
    return key in _HARMLESS or key.startswith(_HARMLESS_STARTS) or key.endswith(_HARMLESS_ENDS)


def _refusal(key: str, value: object, state: str) -> str:
    return (
        f"{key} is {str(value)[:100]!r}, and a model where it is {state} may be computed otherwise "
        "than llama.cpp does; remove the key from config.json if the model does not depend on it, "
        "or convert it with llama.cpp and give the GGUF to --model"
    )


def check_biases(config: Config, defaults: Config, stored: Mapping[str, StoredTensor]) -> None:
    """Refuse biases that are stored but that config.json switches off.

    transformers leaves them out then, llama.cpp adds whatever the GGUF has. Where transformers
    does not know the key, it decides nothing: query, key and value of Qwen2 always have biases.
    """
    for key, endings in _BIASES.items():
        first = next((name for name in stored if name.endswith(endings)), None)
        refuse_if(
            key in defaults and config.get(key) is False and first is not None,
            f"{key} is false, but the checkpoint has {first}, which llama.cpp would add; set "
            f"{key} to true if the model was trained with biases",
        )
