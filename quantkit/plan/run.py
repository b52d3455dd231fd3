"""A model and a target → a plan: the call that `quantkit plan` and the Python API share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from quantkit.config.recipe import Recipe, recipe_for
from quantkit.config.target import Target
from quantkit.core.console import Console
from quantkit.core.errors import InputError
from quantkit.core.progress import Progress
from quantkit.formats.gguf_file import shard_paths
from quantkit.llamacpp.memory_plan import asking
from quantkit.models.choose import ModelChoice, choose_model, open_shapes
from quantkit.models.model import Model
from quantkit.plan.allowed_types import Costs
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.plan import Entry, Plan, ask_early, plan_recipe, plan_types
from quantkit.plan.targets import choose_target
from quantkit.plan.type_choice import choose_types
from quantkit.study.sensitivity import Study


@dataclass(frozen=True)
class ModelPlan:
    """A model, planned for a target.

    Attributes:
        name: of the model.
        model: as it is planned; its context may be longer than its metadata says.
        metadata_context_tokens: the context that its metadata says.
        recipe: whose levels are planned.
        costs: what a type of a tensor costs: nominal, or measured.
        plan: of its artifacts on the target.
        file: the GGUF that is planned as it is; None: artifacts that are to be made.
    """

    name: str
    model: Model
    metadata_context_tokens: int
    recipe: Recipe
    costs: Costs
    plan: Plan
    file: Path | None = None

    @property
    def entries(self) -> Sequence[Entry]:
        """The artifacts: each has `types`, `total_bytes` and a `placement` on the GPUs."""
        return self.plan.entries


def plan(
    model: str | Path,
    target: str | Path | Target,
    *,
    recipe: str | Path | Recipe | None = None,
    levels: str | Iterable[str] | None = None,
    types: str | Path | Mapping[str, str] | None = None,
    study: Study | None = None,
    quiet: bool = True,
    **changes: float | str | None,
) -> ModelPlan:
    """What fits a target, GPU by GPU; no weights are read.

    Args:
        target: the name of one that ships, a YAML file, "auto" for this machine's GPUs, or a
            `Target`.
        recipe: None: the one written for the model, else the default.
        levels: instead of the recipe's, as in "Q6,Q4_K_M,4.5,71GiB". A GGUF file without `recipe`
            and `levels` is planned with the types that it has.
        types: plan one artifact: an allocation.json, a preset, or tensor → type.
        study: chooses types by measured costs; without it costs are nominal.
        changes: fields of the target with other values, as in context_tokens=32768, kv_type="f16".

    Raises:
        DoesNotFitError: nothing fits; says what would.
        InputError: no such model, target, recipe or level, or llama.cpp refuses the model.
        EnvironmentFault: the network, the Hub or native code failed.
    """
    if types is not None and levels is not None:
        raise InputError("--types plans one artifact and --levels several: give one of them")
    gpus = choose_target(target).changed(**changes)
    choice, rules = choose_model(str(model)), recipe_for(model, recipe, levels)
    as_it_is = choice.kind == "gguf" and recipe is None and levels is None
    context = changes.get("context_tokens")
    with asking(), Console(quiet=quiet).stage("headers") as progress:
        planned, said = _opened(choice, rules, gpus, progress)
        if context is not None:
            planned = planned.with_context(int(context))
        if study is None:
            costs: Costs = nominal_costs(planned, rules.measure)
        else:
            costs = study.sensitivity.tensor_costs()
        file = choice.path if as_it_is and types is None else None
        if types is not None:
            named = types if isinstance(types, Mapping) else str(types)
            made = _plan_of_types(named, gpus, planned, said, costs)
        elif file is not None:
            made = _plan_of_file(file, gpus, planned, said, costs)
        else:
            made = plan_recipe(rules, gpus, planned, said, costs)
    return ModelPlan(choice.name, planned, said, rules, costs, made, file)


def _opened(
    choice: ModelChoice, recipe: Recipe, target: Target, progress: Progress
) -> tuple[Model, int]:
    """The model and its own context; llama.cpp answers while the tokenizer is read."""
    with ThreadPoolExecutor(1) as pool:
        source = open_shapes(
            choice,
            progress,
            keep_prediction=recipe.convert.mtp == "keep",
            on_shape=lambda metadata, tensors: pool.submit(
                ask_early, Model(choice.name, metadata, tensors), target
            ),
        )
        model = Model.of(choice.name, source)
    return model, model.geometry.trained_context_tokens


def _plan_of_types(
    types: str | Mapping[str, str], target: Target, model: Model, said: int, costs: Costs
) -> Plan:
    """One artifact that is to be made."""
    chosen = choose_types(types, model, has_imatrix=True)
    name = chosen.preset or (Path(types).stem if isinstance(types, str) else "types")
    fallbacks = chosen.stock.fallbacks if chosen.stock is not None else None
    named = model.named(f"{model.name}-{name}")
    return plan_types(name, chosen.types, target, named, said, costs, fallbacks)


def _plan_of_file(file: Path, target: Target, model: Model, said: int, costs: Costs) -> Plan:
    """A GGUF file with the types that it has."""
    found = plan_types("as it is", model.types, target, model, said, costs)
    size = sum(path.stat().st_size for path in shard_paths(file))
    (entry,) = found.entries
    launch = replace(entry.launch, model_file=file.name)
    return replace(found, entries=(replace(entry, launch=launch, total_bytes=size),))
