"""The families that quantkit converts, by the architecture that config.json names."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from quantkit.core.errors import InputError
from quantkit.formats.safetensors_files import CONVERTIBLE
from quantkit.models.families.base import Config, Family, refuse_if
from quantkit.models.families.config_keys import unread_keys
from quantkit.models.families.granite_hybrid import GraniteHybrid
from quantkit.models.families.llama import Llama
from quantkit.models.families.nemotron_h import NemotronH
from quantkit.models.families.qwen import Qwen2, Qwen3, Qwen3Moe
from quantkit.models.transformers_reader import (
    causal_model,
    config_defaults,
    config_with_defaults,
    with_infinity,
)

FAMILIES: tuple[Family, ...] = (NemotronH(), GraniteHybrid(), Llama(), Qwen2(), Qwen3(), Qwen3Moe())


def family_for(config: Config) -> Family:
    """The family of `architectures[0]`, or of `model_type` where there are none.

    Raises:
        InputError: it is none that is converted, or `model_type` is that of another one.
    """
    named, kind = config.get("architectures"), config.get("model_type")
    architecture = named[0] if isinstance(named, list) and named else causal_model(kind)
    for family in FAMILIES:
        if architecture in family.architectures:
            meant = causal_model(kind)
            refuse_if(
                meant not in (None, *family.architectures),
                f"architectures names {architecture}, but transformers takes model_type {kind!r} "
                f"for {meant}, another model; correct the one that is wrong",
            )
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise InputError(
        f"config.json names the architecture {architecture!r}; checkpoints are converted for "
        f"{supported}. Any GGUF file is accepted: --model file.gguf"
    )


@dataclass(frozen=True)
class Described:
    """What a config.json says.

    Attributes:
        family: of the architecture that it names.
        config: with the defaults of transformers.
        unknown: keys that neither quantkit nor transformers knows, and that count for nothing.
    """

    family: Family
    config: Config
    unknown: tuple[str, ...]


def described(raw: Config) -> Described:
    """The configuration `raw`, of which every key is read, harmless, or known to nobody.

    Raises:
        InputError: as `family_for`, `config_with_defaults` and `unread_keys`.
    """
    family, config = family_for(raw), config_with_defaults(raw)
    unknown = unread_keys(family, with_infinity(raw), config, config_defaults(raw))
    return Described(family, config, unknown)


def check_not_quantized(config: Config, where: str, dtypes: Collection[str] | None = None) -> None:
    """Refuse a configuration that describes quantized weights.

    Args:
        where: the file, for the message.
        dtypes: of the weights; None where they are not here.
    """
    given = config.get("quantization_config")
    if not given:
        return
    method = given.get("quant_method") if isinstance(given, dict) else given
    says = f"{where} describes a quantized checkpoint (quantization_config: {str(method)[:50]})"
    if dtypes is not None and set(dtypes) <= set(CONVERTIBLE):
        raise InputError(
            f"{says}, but its weights are {' and '.join(sorted(set(dtypes)))}: the entry is left "
            "over from before they were dequantized; remove quantization_config from the file"
        )
    left_over = (
        ""
        if dtypes is not None
        else "; if its weights are BF16 all the same, download it with 'hf download', remove the "
        "entry and give the folder"
    )
    raise InputError(
        f"{says}; only {', '.join(CONVERTIBLE)} are converted: use the model's BF16 release"
        f"{left_over}"
    )
