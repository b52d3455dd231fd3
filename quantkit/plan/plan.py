"""What fits a target, GPU by GPU: `quantkit plan` and the Python API's `plan`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from quantkit.config.recipe import Recipe, recipe_for
from quantkit.config.target import Target
from quantkit.core.console import Console
from quantkit.core.errors import DoesNotFitError, InputError, QuantkitError
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.gguf_file import shard_paths
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp.memory_plan import ask_memory, asking
from quantkit.llamacpp.presets import Fallback, StockTypes
from quantkit.models.choose import ModelChoice, choose_model, open_shapes
from quantkit.models.end_tokens import stop_texts
from quantkit.models.model import Model, check_context
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import larger_batches, ways_out
from quantkit.plan.gpu_memory import GPUMemory, padded_bytes
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import (
    NOMINAL_GAP,
    exact_question,
    fit,
    fit_exactly,
    nominal_costs,
    place_exactly,
    plan_levels,
    searching,
)
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.placement import Placement, check_fits
from quantkit.plan.targets import choose_target
from quantkit.plan.type_choice import choose_types
from quantkit.quantize.quantize import artifact_bytes, artifact_names
from quantkit.study.sensitivity import Study


@dataclass(frozen=True)
class Entry:
    """One artifact, planned.

    Attributes:
        name: of the level, or of the file that is planned as it is.
        model: with the name of its files.
        launch: how it is started, its placement included.
    """

    name: str
    model: Model
    types: Mapping[str, str]
    total_bytes: int
    launch: Launch
    fallbacks: Mapping[str, Fallback] = field(default_factory=dict)

    @property
    def placement(self) -> Placement:
        return self.launch.placement

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total_bytes / self.model.elements


@dataclass(frozen=True)
class Plan:
    """Artifacts on a target.

    Attributes:
        room_bytes: that the GPUs leave for weights.
        notes: sentences on what was left out, or estimated.
    """

    memory: GPUMemory
    room_bytes: int
    entries: Sequence[Entry]
    notes: Sequence[str]


def plan_recipe(
    recipe: Recipe,
    target: Target,
    model: Model,
    gguf_context_tokens: int,
    costs: Costs | None = None,
    progress: Progress = SILENT,
) -> Plan:
    """The levels of a recipe on a target.

    Args:
        gguf_context_tokens: the artifact's own `context_length`.
        costs: decide the types; None: nominal ones, because sizes need no measurement.

    Raises:
        DoesNotFitError: no level fits; says what would.
        InputError: an impossible level, or llama.cpp refuses the model.
    """
    memory, notes = _memory(model, target)
    costs = costs or nominal_costs(model, recipe.measure)
    try:
        levels, left_out = plan_levels(recipe, model, memory)
    except DoesNotFitError as error:
        raise _with_ways_out(error, model, costs, target) from None
    found = []
    for level in levels:
        named = model.named(f"{model.name}-{level.recipe.name}")
        fitted = fit(level, named, costs, memory, NOMINAL_GAP, progress)
        found.append((level, named, fitted))
    ask_memory(  # of all in one process; the answers are cached
        [
            exact_question(fitted.placement, named, fitted.allocation.types)
            for _, named, fitted in found
            if not fitted.placement.compute_is_estimated
        ]
    )
    entries = []
    for level, named, fitted in found:
        placement = place_exactly(named, fitted.allocation.types, memory)
        if not placement.fits:
            fitted = fit_exactly(level, named, costs, memory, NOMINAL_GAP, progress)
            placement = fitted.placement
        types, name = fitted.allocation.types, level.recipe.name
        entries.append(
            _entry(name, named, types, placement, gguf_context_tokens, target, level.stock)
        )
    return _plan(memory, entries, [*left_out, *notes])


def plan_types(
    name: str,
    types: Mapping[str, str],
    target: Target,
    model: Model,
    gguf_context_tokens: int,
    costs: Costs,
    stock: StockTypes | None = None,
) -> Plan:
    """One artifact whose types are given, on a target.

    Args:
        costs: nominal ones, of what would fit instead.
        stock: the preset that the types are of.

    Raises:
        DoesNotFitError: the GPUs do not hold it; says what would fit.
        InputError: llama.cpp refuses the model.
    """
    memory, notes = _memory(model, target)
    placement = place_exactly(model, types, memory)
    try:
        check_fits(placement, target.name)
    except DoesNotFitError as error:
        raise _with_ways_out(error, model, costs, target, types) from None
    entry = _entry(name, model, types, placement, gguf_context_tokens, target, stock)
    return _plan(memory, [entry], notes)


def _memory(model: Model, target: Target) -> tuple[GPUMemory, list[str]]:
    """The target's memory for the model; what `alternatives` asks first is asked for at once."""
    longest = target.changed(context_tokens=model.geometry.longest_context_tokens)
    asked = [target, longest, *larger_batches(target)[:1]]
    (memory, *_), why = gpu_memories(model, asked)
    return memory, [sentence for sentence in (memory.cut_text, why) if sentence]


def _entry(
    name: str,
    model: Model,
    types: Mapping[str, str],
    placement: Placement,
    gguf_context_tokens: int,
    target: Target,
    stock: StockTypes | None,
) -> Entry:
    first, family = artifact_names(model, types)[0], model.geometry.architecture
    launch = Launch(
        placement,
        first,
        model.name,
        family,
        gguf_context_tokens,
        target.devices,
        stops=stop_texts(model.metadata),
    )
    fallbacks = {} if stock is None else stock.fallbacks
    return Entry(name, model, types, artifact_bytes(model, types), launch, fallbacks)


def _plan(memory: GPUMemory, entries: Sequence[Entry], notes: Sequence[str]) -> Plan:
    """The plan; the room is that of the entry that leaves most weights to the computer's memory."""
    off_gpus = [
        sum(padded_bytes(info, entry.types[info.name]) for info in entry.model.tensors)
        - sum(gpu.weights_bytes for gpu in entry.placement.gpus)
        for entry in entries
    ]
    return Plan(memory, memory.weights_room + max(off_gpus, default=0), entries, notes)


def _with_ways_out(
    error: DoesNotFitError,
    model: Model,
    costs: Costs,
    target: Target,
    types: Mapping[str, str] | None = None,
) -> DoesNotFitError:
    found = ways_out(model, costs, target, types)
    if not found:
        return DoesNotFitError(f"{error}; no context and no KV cache type would fit")
    return DoesNotFitError(f"{error}. What would fit: {'; '.join(found)}")


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
    beyond_training: bool = False,
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
        beyond_training: allow a context_tokens in `changes` that is longer than the model was
            trained for. That of a target is cut.
        changes: fields of the target with other values, as in context_tokens=32768, kv_type="f16".

    Raises:
        DoesNotFitError: nothing fits; says what would.
        InputError: no such model, target, recipe or level, a context that the model was not
            trained for, or llama.cpp refuses the model.
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
            check_context(choice.name, int(context), said, beyond_training=beyond_training)
            planned = planned.with_context(int(context))
        if study is None:
            costs: Costs = nominal_costs(planned, rules.measure)
        else:
            costs = study.sensitivity.tensor_costs()
        file = choice.path if as_it_is and types is None else None
        if types is not None:
            made = _plan_of_types(types, gpus, planned, said, costs)
        elif file is not None:
            made = _plan_of_file(file, gpus, planned, said, costs)
        else:
            made = plan_recipe(rules, gpus, planned, said, costs, searching(progress))
    return ModelPlan(choice.name, planned, said, rules, costs, made, file)


def _opened(
    choice: ModelChoice, recipe: Recipe, target: Target, progress: Progress
) -> tuple[Model, int]:
    """The model and its own context; llama.cpp answers while the tokenizer is read."""
    with ThreadPoolExecutor(1) as pool:

        def ask_early(metadata: Metadata, tensors: Sequence[TensorInfo]) -> None:
            with suppress(QuantkitError):  # the plan asks again and raises it
                _memory(Model(choice.name, metadata, tensors), target)

        source = open_shapes(
            choice,
            progress,
            keep_prediction=recipe.convert.mtp == "keep",
            on_shape=lambda metadata, tensors: pool.submit(ask_early, metadata, tensors),
        )
        model = Model.of(choice.name, source)
    return model, model.geometry.trained_context_tokens


def _plan_of_types(
    given: str | Path | Mapping[str, str], target: Target, model: Model, said: int, costs: Costs
) -> Plan:
    types = given if isinstance(given, Mapping) else str(given)
    chosen = choose_types(types, model, has_imatrix=True)
    name = chosen.preset or (Path(types).stem if isinstance(types, str) else "types")
    named = model.named(f"{model.name}-{name}")
    return plan_types(name, chosen.types, target, named, said, costs, chosen.stock)


def _plan_of_file(file: Path, target: Target, model: Model, said: int, costs: Costs) -> Plan:
    found = plan_types("as it is", model.types, target, model, said, costs)
    size = sum(path.stat().st_size for path in shard_paths(file))
    (entry,) = found.entries
    launch = replace(entry.launch, model_file=file.name)
    return replace(found, entries=(replace(entry, launch=launch, total_bytes=size),))
