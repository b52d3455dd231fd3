"""The sizes of a Granite-4 model, and what llama.cpp cannot load or compute."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.models.families.base import Config, check_activation, config_int
from quantkit.models.families.decoder import DecoderSizes, decoder_sizes
from quantkit.models.families.mamba2 import Mamba2Sizes

EXPANSION = 2
"""Width of the mixer over the hidden size; src/models/granite-hybrid.cpp asserts it."""

# Spellings before transformers 5, and since.
_KIND = {
    "mamba": "mamba",
    "linear_attention": "mamba",
    "attention": "attention",
    "full_attention": "attention",
}


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
    """The sizes, all but the number of experts positive.

    Raises:
        InputError: config.json lacks one, or describes what llama.cpp cannot load or computes
            otherwise.
    """
    decoder = decoder_sizes(config)
    layers = _layer_kinds(config, decoder.layers)
    experts = config_int(config, "num_local_experts") if config.get("num_local_experts") else 0
    sizes = GraniteSizes(
        layers=layers,
        decoder=decoder,
        mamba=_mamba_sizes(config, decoder.hidden),
        inner=config_int(config, "intermediate_size"),
        shared_inner=config_int(config, "shared_intermediate_size"),
        experts=experts,
        experts_used=config_int(config, "num_experts_per_tok") if experts else 0,
        rotates=config.get("position_embedding_type") == "rope",
    )
    _check(config, sizes)
    return sizes


def _layer_kinds(config: Config, count: int) -> tuple[str, ...]:
    given = config.get("layer_types") or config.get("layers_block_type")
    if not isinstance(given, list) or not given:
        raise InputError(
            "config.json lacks layer_types, the kind of each layer; is it the checkpoint's own?"
        )
    unknown = sorted({str(kind) for kind in given} - _KIND.keys())
    if unknown:
        raise InputError(
            f"config.json: layers of kind {', '.join(unknown)} are not supported; "
            f"known are {', '.join(_KIND)}"
        )
    if len(given) != count:
        raise InputError(
            f"config.json: layer_types names {len(given)} layers, but num_hidden_layers is {count}"
        )
    return tuple(_KIND[str(kind)] for kind in given)


def _mamba_sizes(config: Config, hidden: int) -> Mamba2Sizes:
    """The sizes of the mixer; what is left over of one in a model without it is not checked."""
    heads = config_int(config, "mamba_n_heads")
    return Mamba2Sizes(
        heads=heads,
        head_dim=config_int(config, "mamba_expand") * hidden // heads,
        state=config_int(config, "mamba_d_state"),
        groups=config_int(config, "mamba_n_groups"),
        conv_kernel=config_int(config, "mamba_d_conv"),
    )


def _check(config: Config, sizes: GraniteSizes) -> None:
    """Refuse what llama.cpp cannot load, or would compute otherwise than transformers."""
    check_activation(config)
    if sizes.experts_used > sizes.experts:
        raise InputError(
            f"config.json: num_experts_per_tok is {sizes.experts_used}, but there are only "
            f"{sizes.experts} experts (num_local_experts); is it the checkpoint's own?"
        )
    if sizes.architecture == "granitemoe" and not sizes.rotates:
        raise InputError(
            f"config.json: position_embedding_type is {config.get('position_embedding_type')!r}, "
            "but llama.cpp rotates (rope) every Granite model of attention and experts alone; "
            "no file of this model would run"
        )
    if sizes.architecture == "granitehybrid":
        _check_hybrid(config, sizes)


def _check_hybrid(config: Config, sizes: GraniteSizes) -> None:
    if "attention" not in sizes.layers:
        raise InputError(
            f"config.json: all {len(sizes.layers)} layers of layer_types are Mamba-2, but "
            "llama.cpp cannot run a hybrid without attention; no file of this model would run"
        )
    expansion = config_int(config, "mamba_expand")
    if expansion != EXPANSION:
        raise InputError(
            f"config.json: mamba_expand is {expansion}, but llama.cpp loads Granite hybrids with "
            f"an expansion factor of {EXPANSION} only; no file of this model would run"
        )
    inner, mamba = expansion * sizes.decoder.hidden, sizes.mamba
    if mamba.inner != inner:
        raise InputError(
            f"config.json: mamba_expand × hidden_size is {inner}, which does not divide into "
            f"mamba_n_heads, {mamba.heads}"
        )
    if config.get("mamba_d_head") not in (None, "auto", mamba.head_dim):
        raise InputError(
            f"config.json: mamba_d_head is {config['mamba_d_head']!r}, but mamba_expand × "
            f"hidden_size / mamba_n_heads is {mamba.head_dim}"
        )
    if config.get("mamba_proj_bias"):
        raise InputError(
            "config.json: mamba_proj_bias is set, but llama.cpp knows no biases of in_proj and "
            "out_proj; no file of this model would run"
        )
    if config.get("mamba_conv_bias") is False:
        raise InputError(
            "config.json: mamba_conv_bias is false, but llama.cpp always adds a bias after the "
            "convolution; no file of this model would run"
        )
