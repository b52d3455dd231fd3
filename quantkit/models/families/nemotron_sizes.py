"""The sizes of a Nemotron-H model, from both spellings of its config.json."""

from __future__ import annotations

from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.models.families.base import PREDICTION_LAYERS, Config, config_int
from quantkit.models.families.mamba2 import Mamba2Sizes

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
    mamba: Mamba2Sizes
    prediction_layers: int

    @property
    def is_moe(self) -> bool:
        return "moe" in self.layers

    @property
    def blocks(self) -> tuple[str, ...]:
        """The kind of each GGUF block: the prediction head is one more, attention and MoE both."""
        return self.layers + ("prediction",) * self.prediction_layers


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
        head_dim=config_int(config, "attention_head_dim", "head_dim"),
        mamba=Mamba2Sizes(
            heads=config_int(config, "mamba_num_heads"),
            head_dim=config_int(config, "mamba_head_dim"),
            state=config_int(config, "ssm_state_size"),
            groups=config_int(config, "n_groups", "mamba_n_groups"),
            conv_kernel=config_int(config, "conv_kernel", "mamba_d_conv"),
        ),
        prediction_layers=_prediction_layers(config),
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


def _prediction_layers(config: Config) -> int:
    """How many multi-token prediction layers the GGUF gets: 0 or 1.

    Raises:
        InputError: more than llama.cpp knows, or of another layout than attention, then MoE.
    """
    if not config.get(PREDICTION_LAYERS):
        return 0
    count = config_int(config, PREDICTION_LAYERS)
    pattern = config.get("mtp_hybrid_override_pattern") or config.get("mtp_layers_block_type")
    kinds = [_KIND.get(str(kind)) for kind in pattern or "*E"]
    if count != 1 or kinds != ["attention", "moe"]:
        raise InputError(
            f"config.json: {count} prediction layers of {pattern!r}, but llama.cpp knows one of "
            "attention and MoE; drop them: 'mtp: drop' in the recipe's convert section"
        )
    return count
