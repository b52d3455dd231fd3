"""The largest artifact at each context: of many targets, or of one target's KV cache types.

Functions that ask llama.cpp raise InputError where it refuses the model. Nominal costs are
enough: they only show sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.config.levels import LevelRecipe
from quantkit.config.target import UNQUANTIZED_KV, Target
from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import Largest, largest_level, possible_kv
from quantkit.plan.gpu_memory import check_draft
from quantkit.plan.level_plans import level_size
from quantkit.plan.llama_memory import ask_ladders, check_gpus

BUDGET_CONTEXTS = (32_768, 131_072, 516_096, 1_048_576)


@dataclass(frozen=True)
class TargetBudgets:
    """The largest artifacts on a target; its own context and weight budget do not count.

    Attributes:
        budgets: context, tokens, by rising → bytes of the files together; None: nothing fits.
        refused: why it cannot run the model, whatever its size; None: it can.
    """

    target: Target
    budgets: Mapping[int, int | None]
    refused: str | None = None


def contexts_for(model: Model) -> tuple[int, ...]:
    """BUDGET_CONTEXTS that the model was trained for, tokens; else its own longest."""
    longest = model.geometry.longest_context_tokens
    return tuple(n for n in BUDGET_CONTEXTS if n <= longest) or (longest,)


def budgets_of(
    model: Model, costs: Costs, targets: Sequence[Target], progress: Progress = SILENT
) -> tuple[list[TargetBudgets], str | None]:
    """The budgets of each of `targets`, with their own KV types; llama.cpp is asked once for all.

    Compute buffers are those of layers that lie evenly on the GPUs: asking for each cell's own
    cut, as `largest_exactly` does, would take longer than all else.

    Args:
        progress: counts cells, a target at a context each.

    Returns:
        The budgets, and why they are only estimates, if they are.
    """
    contexts = contexts_for(model)
    refused = [why_refused(model, target) for target in targets]
    usable = [target for target, why in zip(targets, refused, strict=True) if why is None]
    asked, estimated = ask_ladders(model, usable, contexts)
    ladders = iter(asked)
    progress.start(len(usable) * len(contexts), "cells")
    found = []
    for target, why in zip(targets, refused, strict=True):
        budgets: dict[int, int | None] = dict.fromkeys(contexts)
        if why is None:
            ladder = next(ladders)
            for tokens in contexts:
                largest = largest_level(model, costs, ladder.memory(tokens))
                budgets[tokens] = None if largest is None else largest.total_bytes
                progress.advance(1)
        found.append(TargetBudgets(target, budgets, why))
    return found, estimated


def why_refused(model: Model, target: Target) -> str | None:
    """Why llama.cpp cannot run the model on the target, whatever its size; None: it can."""
    try:
        check_gpus(target)
        check_draft(model.geometry, target)
    except InputError as error:
        return str(error)
    return None


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
    """Bytes and name of those of `levels` that have a size of their own, the smallest first."""
    sizes = [(level_size(level, model)[1], level.name) for level in levels]
    return sorted((size, name) for size, name in sizes if size is not None)


def sweep(
    model: Model, costs: Costs, target: Target, levels: Sequence[tuple[int, str]]
) -> tuple[list[Cell], str | None]:
    """A cell for each KV cache type and context, in this order.

    Args:
        levels: as `level_sizes` gives them.

    Returns:
        The cells, and why they are only estimates, if they are.
    """
    kinds = [k for k in KV_TYPES if target.flash_attention or k in UNQUANTIZED_KV]
    kinds = possible_kv(model, kinds)
    if target.kv_type not in kinds:
        kinds.append(target.kv_type)
    longest = model.geometry.longest_context_tokens
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
