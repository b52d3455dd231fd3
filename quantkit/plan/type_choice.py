"""The types of an artifact: from an allocation.json, a stock preset of llama.cpp, or a mapping."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.levels import PRESETS
from quantkit.core.errors import InputError
from quantkit.formats.tensor_types import BY_NAME, quant_type
from quantkit.formats.tensors import ModelHeader, TensorInfo
from quantkit.llamacpp.presets import StockTypes, ask_preset
from quantkit.plan.allocation_file import AllocationFile
from quantkit.quantize.candidates import is_quantizable

ALIASES = {"Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}
"""llama-quantize's own."""
_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
_PLAIN = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TypeChoice:
    """Types by tensor name, and the preset that they are of; None where it is none's.

    `is_named`: the preset was named, and not recognised in a file.
    """

    types: Mapping[str, str]
    stock: StockTypes | None
    is_named: bool = False

    @property
    def preset(self) -> str | None:
        return None if self.stock is None else self.stock.preset


def choose_types(
    given: str | Mapping[str, str], model: ModelHeader, *, has_imatrix: bool
) -> TypeChoice:
    """The type of each of the model's tensors under `given`: a file, a preset, or tensor → type.

    Raises:
        InputError: no such file or preset, or types that are not of this model.
    """
    if not isinstance(given, str):
        check_types("types", given, model.tensors)
        return TypeChoice(given, None)
    path = Path(given).expanduser()
    if path.is_file():
        try:
            allocation = AllocationFile.read(path)
        except InputError as error:
            raise InputError(
                f"{error}; an allocation has tensors: {{NAME: {{type: TYPE}}}}, as 'quantkit "
                "build' writes it"
            ) from None
        try:
            types = {name: quant_type(kind).name for name, kind in allocation.types.items()}
        except ValueError as error:
            raise InputError(f"{path} is damaged: {error}") from None
        check_types(str(path), types, model.tensors)
        if allocation.preset not in PRESETS:
            return TypeChoice(types, None)
        # a file says nothing of its preset's types where someone changed them, or llama.cpp did
        asked = ask_preset(model, allocation.preset, has_imatrix=has_imatrix)
        return TypeChoice(types, asked if asked.types == types else None)
    preset = ALIASES.get(given.upper(), given.upper())
    if preset not in PRESETS:
        raise InputError(
            f"--types {given} is neither a file nor a preset; give an allocation.json, or one of "
            f"{', '.join(PRESETS)}"
        )
    stock = ask_preset(model, preset, has_imatrix=has_imatrix)
    return TypeChoice(stock.types, stock, is_named=True)


def check_types(where: str, types: Mapping[str, str], tensors: Sequence[TensorInfo]) -> None:
    """See that `types` are of exactly these tensors, and that each can take its type.

    Args:
        where: what holds the types, for messages.

    Raises:
        InputError: names the tensors and what is wrong.
    """
    names = {info.name for info in tensors}
    missing = [info.name for info in tensors if info.name not in types]
    unknown = [name for name in types if name not in names]
    for problem, found in (
        ("has no type for {} of the model's tensors", missing),
        ("names {} tensors that the model lacks", unknown),
    ):
        if found:
            raise InputError(
                f"{where} {problem.format(len(found))}, {found[0]} for one; it was made for "
                "another model, or with other --mtp"
            )
    for info in tensors:
        _check_type(where, info, types[info.name])


def _check_type(where: str, info: TensorInfo, name: str) -> None:
    kind = quant_type(name)
    if name == info.type_name:
        return
    if not kind.is_quantized and name not in _PLAIN:
        raise InputError(
            f"{where}: {info.name} cannot be made {name}, which is not a type for weights"
        )
    if not is_quantizable(info):
        raise InputError(
            f"{where}: {info.name} is to be {name}, but llama.cpp takes it only as it is, "
            f"{info.type_name}"
        )
    if not kind.fits_row(info.row_elements):
        raise InputError(
            f"{where}: {info.name} has rows of {info.row_elements}, which are not whole blocks of "
            f"{kind.block_elements}, as {name} needs"
        )


GIVE_ONE = (
    "give one that has those weights with --imatrix ('quantkit imatrix' collects it), or choose "
    "other types"
)


def check_importance(
    choice: TypeChoice, importance: Collection[str], way_out: str = GIVE_ONE
) -> None:
    """That every type that needs an importance matrix has one; `importance` names the weights.

    Of a preset, also what llama-quantize itself asks for (`tensor_requires_imatrix`).

    Args:
        way_out: the message's end.

    Raises:
        InputError: names types and tensors.
    """
    wanting: dict[str, list[str]] = {}
    for name, kind in choice.types.items():
        if name not in importance and _needs_importance(name, kind, choice.preset):
            wanting.setdefault(kind, []).append(name)
    if wanting:
        words = ", ".join(
            f"{kind} ({len(names)} tensors, {names[0]} for one)" for kind, names in wanting.items()
        )
        raise InputError(f"these types need an importance matrix: {words}; {way_out}")


def _needs_importance(name: str, kind: str, preset: str | None) -> bool:
    if BY_NAME[kind].needs_imatrix:
        return True
    if preset is None or name in _EMBEDDINGS:
        return False
    return kind == "IQ3_XXS" or (kind == "Q2_K" and preset == "Q2_K_S")
