"""Which GPU sets hold a published level, and at which context: a model card's table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from quantkit.config.target import Target, known_targets, load_target
from quantkit.core.progress import SILENT, Progress
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.models.geometry import geometry_of
from quantkit.models.model import Model
from quantkit.plan.alternatives import possible_kv
from quantkit.plan.level_plans import place_exactly
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.what_if import CONTEXTS, why_refused


@dataclass(frozen=True)
class TargetFits:
    """What a target holds of a model's levels, with its own KV cache type.

    Attributes:
        levels: name → tokens of the longest context at which the level fits; None: at none.
        refused: why the target cannot run the model at all; None: it can.
    """

    target: Target
    levels: Mapping[str, int | None]
    refused: str | None = None


@dataclass(frozen=True)
class Fits:
    """What each target holds of a model's levels.

    Attributes:
        contexts: in tokens; the target's own was tried too.
        estimated: why the memory is only estimated; None: llama.cpp reported it.
    """

    targets: tuple[TargetFits, ...]
    contexts: tuple[int, ...]
    estimated: str | None = None


def targets_of(own: Target) -> list[Target]:
    """The shipped targets, and the build's `own`, which replaces a shipped one of its name.

    It loses its devices, which belong to the builder's machine.
    """
    shipped = {name: load_target(name) for name in known_targets()}
    return list((shipped | {own.name: own.model_copy(update={"devices": ()})}).values())


def contexts_of(metadata: Metadata) -> tuple[int, ...]:
    """Those of CONTEXTS that the model was trained for, else its trained context; tokens."""
    longest = geometry_of(metadata).longest_context_tokens
    return tuple(n for n in CONTEXTS if n <= longest) or (longest,)


def fits_of(
    metadata: Metadata,
    levels: Mapping[str, Sequence[TensorInfo]],
    targets: Sequence[Target],
    progress: Progress = SILENT,
) -> Fits:
    """The longest context at which each target holds each level: of `contexts_of` and its own.

    Each context is planned as `quantkit plan` does: with llama.cpp's memory of all even splits at
    once, then of the exact split of those that fit, the longest first. Each request starts
    llama.cpp anew, except within `llamacpp.memory_plan.asking()`.

    Args:
        metadata: of the artifacts, as far as llama.cpp plans by it: the architecture's.
        levels: name → every tensor, as the artifact stores it; at least one level.

    Raises:
        InputError: llama.cpp refuses the model.
    """
    models = {name: Model(name, metadata, infos) for name, infos in levels.items()}
    # one level stands for all: the buffers of an even split do not depend on the weights' types
    any_level = next(iter(models.values()))
    refused = [_refused(any_level, target) for target in targets]
    contexts, trained = contexts_of(metadata), any_level.geometry.longest_context_tokens
    ways = []
    for target, why in zip(targets, refused, strict=True):
        tokens = {*contexts, target.run.within(trained).context_tokens} if why is None else ()
        ways.append([target.changed(context_tokens=n) for n in sorted(tokens, reverse=True)])
    memories, estimated = gpu_memories(any_level, [way for some in ways for way in some])
    unused = iter(memories)
    progress.start(len(models) * sum(map(bool, ways)), "cells")
    found = []
    for target, why, some in zip(targets, refused, ways, strict=True):
        planned = [(way, next(unused)) for way in some]
        longest: dict[str, int | None] = dict.fromkeys(models)
        for name, model in models.items() if planned else ():
            fitting = (
                way.context_tokens
                for way, memory in planned
                if place_exactly(model, model.types, memory).fits
            )
            longest[name] = next(fitting, None)
            progress.advance(1)
        found.append(TargetFits(target, longest, why))
    return Fits(tuple(found), contexts, estimated)


def _refused(model: Model, target: Target) -> str | None:
    why = why_refused(model, target)
    if why is None and not possible_kv(model, [target.kv_type]):
        return (
            f"target {target.name} has a {target.kv_type} KV cache, whose blocks do not divide the "
            "model's heads; give it kv_type: f16"
        )
    return why
