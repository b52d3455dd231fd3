"""The largest artifact of a model that each of many targets holds, at some contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quantkit.config.target import Target
from quantkit.core.errors import InputError
from quantkit.core.progress import SILENT, Progress
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import largest_level
from quantkit.plan.gpu_memory import check_draft
from quantkit.plan.llama_memory import ask_ladders, check_gpus

CONTEXTS = (32_768, 131_072, 516_096, 1_048_576)


@dataclass(frozen=True)
class Budget:
    """The largest artifact at a context.

    Attributes:
        largest_bytes: of its files together; None: nothing fits.
    """

    context_tokens: int
    largest_bytes: int | None


@dataclass(frozen=True)
class TargetBudgets:
    """The largest artifacts on a target; its own context and weight budget do not count.

    Attributes:
        budgets: by rising context.
        refused: why it cannot run the model, whatever its size; None: it can.
    """

    target: Target
    budgets: tuple[Budget, ...]
    refused: str | None = None


def contexts_for(model: Model) -> tuple[int, ...]:
    """Those of CONTEXTS that the model was trained for, tokens; else what it was trained for."""
    longest = model.geometry.trained_context_tokens
    return tuple(n for n in CONTEXTS if n <= longest) or (longest,)


def budgets_of(
    model: Model, costs: Costs, targets: Sequence[Target], progress: Progress = SILENT
) -> tuple[list[TargetBudgets], str | None]:
    """The budgets of each of `targets`, with their own KV types; llama.cpp is asked once for all.

    Compute buffers are those of layers that lie evenly on the GPUs: asking for each cell's own
    cut, as `largest_exactly` does, would take longer than all else.

    Args:
        costs: nominal ones: they show sizes.
        progress: counts cells, a target at a context each.

    Returns:
        The budgets, and why they are only estimates, if they are.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    contexts = contexts_for(model)
    refused = [why_refused(model, target) for target in targets]
    usable = [target for target, why in zip(targets, refused, strict=True) if why is None]
    asked, estimated = ask_ladders(model, usable, contexts)
    ladders = iter(asked)
    progress.start(len(usable) * len(contexts), "cells")
    found = []
    for target, why in zip(targets, refused, strict=True):
        if why is not None:
            nothing = tuple(Budget(tokens, None) for tokens in contexts)
            found.append(TargetBudgets(target, nothing, why))
            continue
        ladder = next(ladders)
        budgets = []
        for tokens in contexts:
            largest = largest_level(model, costs, ladder.memory(tokens))
            budgets.append(Budget(tokens, None if largest is None else largest.total_bytes))
            progress.advance(1)
        found.append(TargetBudgets(target, tuple(budgets)))
    return found, estimated


def why_refused(model: Model, target: Target) -> str | None:
    """Why llama.cpp cannot run the model on the target, whatever its size; None: it can."""
    try:
        check_gpus(target)
        check_draft(model.geometry, target)
    except InputError as error:
        return str(error)
    return None
