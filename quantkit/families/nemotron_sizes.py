"""The sizes of a Nemotron-H model, from both spellings of its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.errors import InputError
from quantkit.families.base import Config, config_int

_KIND = {
    "M": "mamba",
    "mamba": "mamba",
    "linear_attention": "mamba",
    "*": "attention",
    "attention": "attention",
    "full_attention": "attention",
    "E": "moe",
    "moe": "moe",
    "-": "mlp",
    "mlp": "mlp",
}


@dataclass(frozen=True)
class NemotronSizes:
    """The sizes that metadata and tensor shapes are made of."""

    layers: tuple[str, ...]
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    ssm_heads: int
    ssm_head_dim: int
    ssm_state: int
    ssm_groups: int
    conv_kernel: int

    @property
    def is_moe(self) -> bool:
        return "moe" in self.layers

    @property
    def ssm_inner(self) -> int:
        """Width of the Mamba-2 mixer: heads × head dimension; `expand` plays no part."""
        return self.ssm_heads * self.ssm_head_dim

    @property
    def conv_channels(self) -> int:
        """x, B and C go through the convolution together."""
        return self.ssm_inner + 2 * self.ssm_groups * self.ssm_state


def nemotron_sizes(config: Config) -> NemotronSizes:
    """The sizes, all positive.

    Raises:
        InputError: config.json lacks one, or its layers are not supported.
    """
    return NemotronSizes(
        layers=_layer_kinds(config),
        hidden=config_int(config, "hidden_size"),
        vocabulary=config_int(config, "vocab_size"),
        heads=config_int(config, "num_attention_heads"),
        kv_heads=config_int(config, "num_key_value_heads"),
        head_dim=config_int(config, "head_dim", "attention_head_dim"),
        ssm_heads=config_int(config, "mamba_num_heads"),
        ssm_head_dim=config_int(config, "mamba_head_dim"),
        ssm_state=config_int(config, "ssm_state_size"),
        ssm_groups=config_int(config, "n_groups", "mamba_n_groups"),
        conv_kernel=config_int(config, "conv_kernel", "mamba_d_conv"),
    )


def _layer_kinds(config: Config) -> tuple[str, ...]:
    """The kind of each layer from `hybrid_override_pattern` ("ME*E") or `layers_block_type`.

    Raises:
        InputError: neither is there, a layer is of an unknown kind, or dense and MoE layers are
            mixed, which llama.cpp cannot load.
    """
    pattern = config.get("hybrid_override_pattern") or config.get("layers_block_type")
    if not isinstance(pattern, str | list) or not pattern:
        raise InputError("config.json lacks hybrid_override_pattern and layers_block_type")
    unknown = sorted({str(kind) for kind in pattern} - _KIND.keys())
    if unknown:
        raise InputError(
            f"config.json: layers of kind {', '.join(unknown)} are not supported; "
            f"known are {', '.join(_KIND)}"
        )
    kinds = tuple(_KIND[kind] for kind in pattern)
    if "moe" in kinds and "mlp" in kinds:
        raise InputError(
            "config.json mixes dense (mlp) and MoE layers, which llama.cpp cannot load"
        )
    return kinds
