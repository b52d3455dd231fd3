"""A model and a target → a plan: the call that `quantkit plan` and the Python API share."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.gguf_file import shard_paths
from quantkit.models.choose import ModelChoice, open_shapes
from quantkit.plan.allowed_types import Costs
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.model import PlannedModel
from quantkit.plan.plan import Sheet, ask_early, plan_recipe, plan_types, with_context
from quantkit.plan.type_choice import choose_types


@dataclass(frozen=True)
class ModelPlan:
    """A model, planned for a target.

    Attributes:
        name: of the model.
        model: as it is planned; its context may be longer than its metadata says.
        metadata_context_tokens: the context that its metadata says.
        recipe: whose levels are planned.
        costs: what a type of a tensor costs: nominal, or measured.
        sheet: the levels with their GPUs.
        file: the GGUF that is planned as it is; None: artifacts that are to be made.
    """

    name: str
    model: PlannedModel
    metadata_context_tokens: int
    recipe: Recipe
    costs: Costs
    sheet: Sheet
    file: Path | None = None


def plan_model(
    choice: ModelChoice,
    recipe: Recipe,
    target: Target,
    progress: Progress = SILENT,
    *,
    types: str | Mapping[str, str] | None = None,
    as_it_is: bool = False,
    context_tokens: int | None = None,
    costs: Costs | None = None,
) -> ModelPlan:
    """Plan the recipe's levels, or one artifact, for the target; no weights are read.

    Args:
        types: of the one artifact that is planned: an allocation.json, a preset, or tensor → type.
        as_it_is: plan a GGUF file with the types that it has.
        context_tokens: a context that may be longer than the model's metadata says.
        costs: measured ones, `Sensitivity.costs()`; nominal ones without.

    Raises:
        DoesNotFitError: nothing fits; says what would.
        InputError: a broken model, impossible types or levels, or llama.cpp refuses the model.
        EnvironmentFault: the network, the Hub or native code failed.
    """
    with ThreadPoolExecutor(1) as pool:  # llama.cpp answers while the tokenizer is read
        source = open_shapes(
            choice,
            progress,
            keep_prediction=recipe.convert.mtp == "keep",
            on_shape=lambda metadata, tensors: pool.submit(ask_early, metadata, tensors, target),
        )
        model = PlannedModel.of(choice.name, source.metadata, source.tensors)
    said = model.geometry.trained_context_tokens
    model = with_context(model, context_tokens)
    costs = costs or nominal_costs(model, recipe.measure)
    file = None
    if types is not None:
        chosen = choose_types(types, model.metadata, model.tensors, has_imatrix=True)
        name = chosen.preset or (Path(types).stem if isinstance(types, str) else "types")
        fallbacks = chosen.stock.fallbacks if chosen.stock is not None else None
        named = dataclasses.replace(model, stem=f"{choice.name}-{name}")
        sheet = plan_types(name, chosen.types, target, named, said, costs, fallbacks)
    elif as_it_is and choice.kind == "gguf" and choice.path is not None:
        file = choice.path
        stored = {info.name: info.type_name for info in model.tensors}
        sheet = plan_types("as it is", stored, target, model, said, costs)
        size = sum(path.stat().st_size for path in shard_paths(file))
        (entry,) = sheet.entries
        entry = dataclasses.replace(entry, file=file.name, total_bytes=size)
        sheet = dataclasses.replace(sheet, entries=(entry,))
    else:
        sheet = plan_recipe(recipe, target, model, said, costs)
    return ModelPlan(choice.name, model, said, recipe, costs, sheet, file)
