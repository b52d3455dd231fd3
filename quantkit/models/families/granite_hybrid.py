"""IBM Granite 4: Mamba-2 and attention layers, each followed by experts and a shared MLP.

GGUF architectures `granitehybrid`; `granite` and `granitemoe` where all layers are attention.
test_against_llama_cpp.py holds the result equal to that of llama.cpp's converter,
but where llama.cpp could not run what the converter writes: see `GraniteHybrid.metadata`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from quantkit.formats.tensors import Metadata
from quantkit.models.families.base import (
    DECODER_FIXED,
    Config,
    Rules,
    StoredTensor,
    TensorRule,
    config_float,
    config_int,
    layer_kinds,
    refuse_if,
    with_prefix,
)
from quantkit.models.families.llama import (
    DECODER_READS,
    DecoderSizes,
    add_attention,
    add_gate_and_up,
    add_output,
    decoder_keys,
    decoder_sizes,
)
from quantkit.models.families.mamba2 import (
    HYBRID_KINDS,
    UNROTATED_CONTEXT_LENGTH,
    Mamba2Sizes,
    add_mamba2,
    check_time_steps,
    mamba2_keys,
)
from quantkit.models.families.rope import add_rope_factors

# What config.json calls them, and the GGUF; transformers and llama.cpp differ in the default of
# the attention's (1 and 1/√head_dim), so all are always written.
_SCALES = {
    "attention_multiplier": "attention.scale",
    "embedding_multiplier": "embedding_scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}


class GraniteHybrid:
    """GraniteMoeHybridForCausalLM, also with all layers attention, and also without experts."""

    architectures = ("GraniteMoeHybridForCausalLM",)
    reads = (
        DECODER_READS
        | _SCALES.keys()
        | {
            "layer_types", "layers_block_type", "shared_intermediate_size", "num_local_experts",
            "num_experts_per_tok", "position_embedding_type", "mamba_n_heads", "mamba_d_head",
            "mamba_d_state", "mamba_n_groups", "mamba_d_conv", "mamba_expand", "mamba_conv_bias",
            "mamba_proj_bias", "time_step_limit", "time_step_min",
        }
    )  # fmt: skip
    fixed: Mapping[str, tuple[object, ...]] = {
        **DECODER_FIXED,
        "normalization_function": ("rmsnorm",),
    }

    def metadata(self, config: Config) -> Metadata:
        """What llama.cpp's converter writes, but for four kinds of models that it gets wrong.

        Rotation follows `position_embedding_type`, as in transformers; the converter rotates if and
        only if all layers are attention. A model without experts uses none of them and is as wide
        as its shared MLP, whatever `num_experts_per_tok` and `intermediate_size` say. And a
        `head_dim` other than hidden size / heads is kept. In all of IBM's releases both ways give
        the same.
        """
        g = granite_sizes(config)
        sizes = g.decoder
        keys = decoder_keys({**config, "head_dim": None}) | mamba2_keys(g.mamba)
        keys |= {
            "vocab_size": sizes.vocabulary,
            "feed_forward_length": g.inner if g.experts else g.shared_inner,
            # llama.cpp tells the kinds of layers apart by this: Mamba has none.
            "attention.head_count_kv": [
                sizes.kv_heads if kind == "attention" else 0 for kind in g.layers
            ],
            "ssm.inner_size": config_int(config, "mamba_expand") * sizes.hidden,
            "rope.dimension_count": sizes.head_dim,
            "rope.scaling.finetuned": g.rotates,
            "expert_count": g.experts,
            "expert_used_count": g.experts_used,
            "expert_shared_feed_forward_length": g.shared_inner,
        }
        for source, key in _SCALES.items():
            keys[key] = config_float(config, source)
        if sizes.head_dim * sizes.heads != sizes.hidden:
            keys["attention.key_length"] = keys["attention.value_length"] = sizes.head_dim
        if not g.rotates:
            keys["context_length"] = UNROTATED_CONTEXT_LENGTH
        return with_prefix(g.architecture, keys)

    def rules(self, config: Config, stored: Mapping[str, StoredTensor]) -> list[TensorRule]:
        g = granite_sizes(config)
        hidden = g.decoder.hidden
        rules = Rules(stored)
        add_rope_factors(rules, config, g.decoder.head_dim)
        rules.add("token_embd.weight", "model.embed_tokens.weight", g.decoder.embedding)
        for index, kind in enumerate(g.layers):
            block, layer = f"blk.{index}.", f"model.layers.{index}."
            rules.add_norm(f"{block}attn_norm", f"{layer}input_layernorm", hidden)
            if kind == "mamba":
                add_mamba2(rules, g.mamba, hidden, block, f"{layer}mamba.")
            else:
                # Where nothing is rotated any one order of q and k gives the same scores; this is
                # the converter's, so that files and imatrices are interchangeable.
                add_attention(rules, g.decoder, block, f"{layer}self_attn.", interleaved=True)
            rules.add_norm(f"{block}ffn_norm", f"{layer}post_attention_layernorm", hidden)
            if g.experts:
                _add_experts(rules, g, block, f"{layer}block_sparse_moe.")
            _add_shared_mlp(rules, g, block, f"{layer}shared_mlp.")
        add_output(rules, config, g.decoder)
        return rules.finish()


def _add_experts(rules: Rules, g: GraniteSizes, block: str, moe: str) -> None:
    """Router and experts; gate and up are stored as one, gate first."""
    hidden, inner, experts = g.decoder.hidden, g.inner, g.experts
    rules.add(f"{block}ffn_gate_inp.weight", f"{moe}router.layer.weight", (experts, hidden))
    fused = f"{moe}input_linear.weight"
    add_gate_and_up(rules, block, "_exps", fused, (experts, inner, hidden))
    down = f"{moe}output_linear.weight"
    rules.add(f"{block}ffn_down_exps.weight", down, (experts, hidden, inner))


def _add_shared_mlp(rules: Rules, g: GraniteSizes, block: str, mlp: str) -> None:
    """The shared expert, or all of the feed-forward network where there are no experts."""
    hidden, inner, suffix = g.decoder.hidden, g.shared_inner, "_shexp" if g.experts else ""
    add_gate_and_up(rules, block, suffix, f"{mlp}input_linear.weight", (inner, hidden))
    rules.add_linear(f"{block}ffn_down{suffix}", f"{mlp}output_linear", (hidden, inner))


EXPANSION = 2
"""Width of the mixer over the hidden size; src/models/granite-hybrid.cpp asserts it."""


@dataclass(frozen=True)
class GraniteSizes:
    """The sizes that metadata and tensor shapes are made of.

    Attributes:
        layers: "mamba" or "attention" for each layer.
        inner: width of an expert.
        shared_inner: width of the MLP that every token goes through, the only one without experts.
        experts: 0 in a dense model.
        rotates: whether queries and keys are rotated (RoPE), or not (NoPE).
    """

    layers: tuple[str, ...]
    decoder: DecoderSizes
    mamba: Mamba2Sizes
    inner: int
    shared_inner: int
    experts: int
    experts_used: int
    rotates: bool

    @property
    def architecture(self) -> str:
        """`general.architecture`, by the same rule as llama.cpp's converter."""
        if "mamba" in self.layers:
            return "granitehybrid"
        return "granitemoe" if self.experts else "granite"


def granite_sizes(config: Config) -> GraniteSizes:
    """The sizes, all but the number of experts positive."""
    decoder = decoder_sizes(config)
    layers = layer_kinds(
        config.get("layer_types") or config.get("layers_block_type"), HYBRID_KINDS, "layer_types"
    )
    refuse_if(
        len(layers) != decoder.layers,
        f"layer_types names {len(layers)} layers, but num_hidden_layers is {decoder.layers}",
    )
    experts = config_int(config, "num_local_experts") if config.get("num_local_experts") else 0
    mamba_heads = config_int(config, "mamba_n_heads")
    sizes = GraniteSizes(
        layers=layers,
        decoder=decoder,
        mamba=Mamba2Sizes(  # of a model without a mixer what config.json still says; not checked
            heads=mamba_heads,
            head_dim=config_int(config, "mamba_expand") * decoder.hidden // mamba_heads,
            state=config_int(config, "mamba_d_state"),
            groups=config_int(config, "mamba_n_groups"),
            conv_kernel=config_int(config, "mamba_d_conv"),
        ),
        inner=config_int(config, "intermediate_size"),
        shared_inner=config_int(config, "shared_intermediate_size"),
        experts=experts,
        experts_used=config_int(config, "num_experts_per_tok") if experts else 0,
        rotates=config.get("position_embedding_type") == "rope",
    )
    _check(config, sizes)
    return sizes


def _check(config: Config, sizes: GraniteSizes) -> None:
    """Refuse what llama.cpp cannot load, or would compute otherwise than transformers."""
    refuse_if(
        sizes.experts_used > sizes.experts,
        f"num_experts_per_tok is {sizes.experts_used}, but there are only {sizes.experts} experts "
        "(num_local_experts); is it the checkpoint's own?",
    )
    refuse_if(
        sizes.architecture == "granitemoe" and not sizes.rotates,
        f"position_embedding_type is {config.get('position_embedding_type')!r}, but llama.cpp "
        "rotates (rope) every Granite model of attention and experts alone; no file of this model "
        "would run",
    )
    if sizes.architecture == "granitehybrid":
        _check_hybrid(config, sizes)


def _check_hybrid(config: Config, sizes: GraniteSizes) -> None:
    check_time_steps(config)
    layers, mamba = sizes.layers, sizes.mamba
    expansion = config_int(config, "mamba_expand")
    inner = expansion * sizes.decoder.hidden
    unloadable = {
        f"all {len(layers)} layers of layer_types are Mamba-2, but llama.cpp cannot run a hybrid "
        "without attention": "attention" not in layers,
        f"mamba_expand is {expansion}, but llama.cpp loads Granite hybrids with an expansion "
        f"factor of {EXPANSION} only": expansion != EXPANSION,
        "mamba_proj_bias is set, but llama.cpp knows no biases of in_proj and out_proj": bool(
            config.get("mamba_proj_bias")
        ),
        "mamba_conv_bias is false, but llama.cpp always adds a bias after the "
        "convolution": config.get("mamba_conv_bias") is False,
    }
    for reason, wrong in unloadable.items():
        refuse_if(wrong, f"{reason}; no file of this model would run")
    product = "mamba_expand × hidden_size"
    refuse_if(
        mamba.inner != inner,
        f"{product} is {inner}, which does not divide into mamba_n_heads, {mamba.heads}",
    )
    given = config.get("mamba_d_head")
    refuse_if(
        given not in (None, "auto", mamba.head_dim),
        f"mamba_d_head is {given!r}, but {product} / mamba_n_heads is {mamba.head_dim}",
    )
