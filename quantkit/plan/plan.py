"""What `quantkit plan` finds out: levels with their GPUs, budgets, and what else would fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from quantkit.config.recipe import Recipe
from quantkit.config.target import Target
from quantkit.core.errors import DoesNotFitError, QuantkitError
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp.memory_plan import ask_memory
from quantkit.llamacpp.presets import Fallback
from quantkit.models.geometry import ModelGeometry
from quantkit.plan.allowed_types import Costs
from quantkit.plan.alternatives import Largest, largest_level, longest_context, ways_out
from quantkit.plan.fit import exact_shape, fit, fit_exactly, place_exactly
from quantkit.plan.gpu_memory import HOST, GPUMemory, layers_of, padded_bytes
from quantkit.plan.launch.of_plan import launch_of
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import NOMINAL_GAP, nominal_costs, plan_levels
from quantkit.plan.llama_memory import ContextLadder, asked_memories
from quantkit.plan.model import PlannedModel
from quantkit.plan.place import Placement, check_fits
from quantkit.quantize.quantize import artifact_bytes, artifact_names

LARGER_BATCHES = (1024, 2048, 4096)


@dataclass(frozen=True)
class Entry:
    """One artifact, planned.

    Attributes:
        name: of the level, or of the file that is planned as it is.
        model: with the stem of its files.
        file: the one that llama.cpp opens.
        gguf_context_tokens: `context_length` in the file.
    """

    name: str
    model: PlannedModel
    types: Mapping[str, str]
    total_bytes: int
    placement: Placement
    file: str
    gguf_context_tokens: int
    fallbacks: Mapping[str, Fallback] = dataclasses.field(default_factory=dict)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.total_bytes / self.model.elements

    @property
    def launch(self) -> Launch:
        return launch_of(self.placement, self.model, self.file, self.gguf_context_tokens)


@dataclass(frozen=True)
class Headroom:
    """What a target's unused memory would buy, beside a planned artifact.

    Attributes:
        largest: the largest artifact at the target's context; None: nothing fits.
        context_tokens: the longest context for the artifact that is planned; None where it fills
            the target's own.
        ubatch_tokens: the largest physical batch, where it is larger than the target's.
    """

    largest: Largest | None
    context_tokens: int | None
    ubatch_tokens: int | None


@dataclass(frozen=True)
class Sheet:
    """A plan.

    Attributes:
        room_bytes: that the GPUs leave for weights.
        notes: sentences on what was left out, or estimated.
    """

    target: Target
    geometry: ModelGeometry
    memory: GPUMemory
    room_bytes: int
    entries: Sequence[Entry]
    notes: Sequence[str]


def with_context(model: PlannedModel, context_tokens: int | None) -> PlannedModel:
    """The model, planned for a longer context than its metadata says where one is asked for."""
    if context_tokens is None or context_tokens <= model.geometry.trained_context_tokens:
        return model
    longer = dataclasses.replace(model.geometry, trained_context_tokens=context_tokens)
    return dataclasses.replace(model, geometry=longer)


def ask_early(architecture: Metadata, tensors: Sequence[TensorInfo], target: Target) -> None:
    """Ask llama.cpp what a plan will ask it first; the answers are kept.

    Args:
        architecture: the architecture's part of the metadata.
    """
    with suppress(QuantkitError):  # the plan asks again, and tells
        _memory(PlannedModel.of("early", architecture, tensors), target)


def plan_recipe(
    recipe: Recipe,
    target: Target,
    model: PlannedModel,
    said_context_tokens: int,
    costs: Costs | None = None,
) -> Sheet:
    """The levels of a recipe on a target.

    Args:
        said_context_tokens: the artifact's own `context_length`.
        costs: that decide the types; None: nominal ones, because sizes need no measurement.

    Raises:
        DoesNotFitError: no level fits; says what would.
        InputError: an impossible level, or llama.cpp refuses the model.
    """
    memory, notes = _memory(model, target)
    costs = costs or nominal_costs(model, recipe.measure)
    try:
        levels, left_out = plan_levels(recipe, target, model, memory)
    except DoesNotFitError as error:
        raise _with_ways_out(error, model, costs, target) from None
    found = []
    for level in levels:
        named = dataclasses.replace(model, stem=f"{model.stem}-{level.recipe.name}")
        fitted = fit(level, named, costs, target, memory, NOMINAL_GAP)
        found.append((level, named, fitted))
    _ask_together([(named, f.allocation.types, f.placement) for _, named, f in found], target)
    entries = []
    for level, named, fitted in found:
        placement = place_exactly(named, fitted.allocation.types, target, memory)
        if not placement.fits:
            fitted = fit_exactly(level, named, costs, target, memory, NOMINAL_GAP)
            placement = fitted.placement
        types = fitted.allocation.types
        fallbacks = level.stock.fallbacks if level.stock is not None else {}
        size = fitted.allocation.total_bytes
        name = level.recipe.name
        entries.append(_entry(name, named, types, size, placement, said_context_tokens, fallbacks))
    return _sheet(target, model, memory, entries, [*left_out, *notes])


def plan_types(
    name: str,
    types: Mapping[str, str],
    target: Target,
    model: PlannedModel,
    said_context_tokens: int,
    costs: Costs,
    fallbacks: Mapping[str, Fallback] | None = None,
) -> Sheet:
    """One artifact whose types are given, on a target.

    Args:
        costs: nominal ones, of what would fit instead.

    Raises:
        DoesNotFitError: the GPUs do not hold it; says what would fit.
        InputError: llama.cpp refuses the model.
    """
    memory, notes = _memory(model, target)
    placement = place_exactly(model, types, target, memory)
    try:
        check_fits(placement, target)
    except DoesNotFitError as error:
        raise _with_ways_out(error, model, costs, target, types) from None
    size = artifact_bytes(model.stem, model.metadata, model.tensors, types)
    entry = _entry(name, model, types, size, placement, said_context_tokens, fallbacks or {})
    return _sheet(target, model, memory, [entry], notes)


def headroom(sheet: Sheet, entry: Entry, costs: Costs) -> Headroom:
    """What the memory that `entry` leaves unused would buy.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    target, model = sheet.target, entry.model
    largest = largest_level(model, costs, target, sheet.memory)
    longest = sheet.geometry.trained_context_tokens
    (at_longest,), _ = asked_memories(
        model.metadata, model.tensors, model.geometry, [target.changed(context_tokens=longest)]
    )
    rungs = sorted({sheet.memory.context_tokens: sheet.memory, longest: at_longest}.items())
    ladder = ContextLadder(
        sheet.geometry, target, tuple((tokens, memory.compute) for tokens, memory in rungs)
    )
    tokens = longest_context(model, entry.types, ladder)
    longer = tokens is not None and tokens > sheet.memory.context_tokens
    return Headroom(largest, tokens if longer else None, _largest_batch(target, entry))


def _largest_batch(target: Target, entry: Entry) -> int | None:
    """The largest of LARGER_BATCHES for which there is room; None: no larger one than now."""
    found, model = None, entry.model
    for larger in _larger_batches(target):
        (memory,), _ = asked_memories(model.metadata, model.tensors, model.geometry, [larger])
        if not place_exactly(model, entry.types, larger, memory).fits:
            break
        found = larger.ubatch_tokens
    return found


def _larger_batches(target: Target) -> list[Target]:
    return [target.changed(ubatch_tokens=n) for n in LARGER_BATCHES if n > target.ubatch_tokens]


def _memory(model: PlannedModel, target: Target) -> tuple[GPUMemory, list[str]]:
    """The target's memory for the model; what `headroom` asks first is asked for at once."""
    longest = target.changed(context_tokens=model.geometry.trained_context_tokens)
    asked = [target, longest, *_larger_batches(target)[:1]]
    (memory, *_), why = asked_memories(model.metadata, model.tensors, model.geometry, asked)
    return memory, [why] if why else []


def _entry(
    name: str,
    model: PlannedModel,
    types: Mapping[str, str],
    size: int,
    placement: Placement,
    said_context_tokens: int,
    fallbacks: Mapping[str, Fallback],
) -> Entry:
    file = artifact_names(model.stem, model.metadata, model.tensors, types)[0]
    return Entry(name, model, types, size, placement, file, said_context_tokens, fallbacks)


def _sheet(
    target: Target,
    model: PlannedModel,
    memory: GPUMemory,
    entries: Sequence[Entry],
    notes: Sequence[str],
) -> Sheet:
    host = max((_off_gpus(entry, memory) for entry in entries), default=0)
    return Sheet(target, model.geometry, memory, memory.weights_room + host, entries, notes)


def _off_gpus(entry: Entry, memory: GPUMemory) -> int:
    """Bytes of the artifact's weights that lie on no GPU."""
    tensors = entry.model.tensors
    at = layers_of(tensors, len(memory.context), memory.unloaded)
    return sum(padded_bytes(i, entry.types[i.name]) for i in tensors if at[i.name] == HOST)


def _ask_together(
    found: Sequence[tuple[PlannedModel, Mapping[str, str], Placement]], target: Target
) -> None:
    """Ask llama.cpp of all placements in one process; the answers are kept."""
    asked = [
        exact_shape(placement, model, types, target)
        for model, types, placement in found
        if not placement.estimated
    ]
    ask_memory(asked)


def _with_ways_out(
    error: DoesNotFitError,
    model: PlannedModel,
    costs: Costs,
    target: Target,
    types: Mapping[str, str] | None = None,
) -> DoesNotFitError:
    """The error with what would fit instead, each with its numbers."""
    found = ways_out(model, costs, target, types)
    if not found:
        return DoesNotFitError(f"{error}; no context and no KV cache type would fit")
    return DoesNotFitError(f"{error}. What would fit: {'; '.join(found)}")
