"""The families that quantkit converts, by the architecture that config.json names."""

from __future__ import annotations

from quantkit.core.errors import InputError
from quantkit.models.families.base import Config, Family
from quantkit.models.families.granite_hybrid import GraniteHybrid
from quantkit.models.families.llama import Llama
from quantkit.models.families.nemotron_h import NemotronH
from quantkit.models.families.qwen import Qwen2, Qwen3, Qwen3Moe

FAMILIES: tuple[Family, ...] = (NemotronH(), GraniteHybrid(), Llama(), Qwen2(), Qwen3(), Qwen3Moe())


def family_for(config: Config) -> Family:
    """The family of `architectures[0]`.

    Raises:
        InputError: config.json names no architecture, or one that is not converted.
    """
    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    for family in FAMILIES:
        if architecture in family.architectures:
            return family
    supported = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise InputError(
        f"config.json names the architecture {architecture!r}; checkpoints are converted for "
        f"{supported}. Any GGUF file is accepted: --model file.gguf"
    )
