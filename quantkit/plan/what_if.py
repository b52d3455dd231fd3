"""The largest artifact for every context and KV cache type that a target could be used with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.levels import LevelRecipe
from quantkit.config.run_settings import UNQUANTIZED_KV
from quantkit.config.target import Target
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import Largest, largest_level, possible_kv
from quantkit.plan.llama_memory import ask_ladders
from quantkit.quantize.quantize import artifact_bytes

CONTEXTS = (32_768, 65_536, 131_072, 262_144, 516_096, 1_048_576)
KV_TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class Cell:
    """One way of using the target.

    Attributes:
        largest: what fits; None: nothing does.
        level: the name of the largest of the given levels that fits; None: none does.
    """

    context_tokens: int
    kv_type: str
    largest: Largest | None
    level: str | None


def level_sizes(levels: Sequence[LevelRecipe], model: Model) -> list[tuple[int, str]]:
    """Bytes and name of those of `levels` that have a size of their own, the smallest first.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    found = []
    for level in levels:
        bits = level.bits(model.elements)
        if level.preset is not None:
            stock = ask_preset(model, level.preset, has_imatrix=True)
            size = artifact_bytes(model, stock.types)
            found.append((size, level.name))
        elif bits is not None:
            found.append((int(bits * model.elements / 8), level.name))
    return sorted(found)


def sweep(
    model: Model, costs: Costs, target: Target, levels: Sequence[tuple[int, str]]
) -> tuple[list[Cell], str | None]:
    """A cell for each KV cache type and context, in this order.

    Args:
        costs: nominal ones: they show sizes.
        levels: as `level_sizes` gives them.

    Returns:
        The cells, and why they are only estimates, if they are.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    kinds = [k for k in KV_TYPES if target.flash_attention or k in UNQUANTIZED_KV]
    kinds = possible_kv(model, kinds)
    if target.kv_type not in kinds:
        kinds.append(target.kv_type)
    longest = model.geometry.trained_context_tokens
    contexts = sorted({n for n in (*CONTEXTS, target.context_tokens) if n <= longest} or {longest})
    ladders, why = ask_ladders(model, [target.changed(kv_type=kind) for kind in kinds], contexts)
    cells = []
    for ladder in ladders:
        for tokens, _ in ladder.rungs:
            largest = largest_level(model, costs, ladder.memory(tokens))
            fitting = [n for size, n in levels if largest and size <= largest.total_bytes]
            level = fitting[-1] if fitting else None
            cells.append(Cell(tokens, ladder.target.kv_type, largest, level))
    return cells, why
