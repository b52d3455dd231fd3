"""What else would fit a target: the longest context, the largest level, other KV cache types.

Functions that ask llama.cpp raise InputError where it refuses the model. Nominal costs are
enough: they only show sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.config.levels import LevelRecipe
from quantkit.config.target import Target
from quantkit.core.errors import DoesNotFitError
from quantkit.core.units import GIB
from quantkit.formats.tensor_types import BY_NAME
from quantkit.models.model import Model
from quantkit.plan.allocate import fill_types
from quantkit.plan.allowed_types import Costs, smallest_types
from quantkit.plan.gpu_memory import GPUMemory
from quantkit.plan.level_plans import ATTEMPTS, largest_bytes, model_host_bytes, place_exactly
from quantkit.plan.llama_memory import ContextLadder, ask_ladders, gpu_memories
from quantkit.plan.placement import Placement, place
from quantkit.quantize.quantize import artifact_bytes, overhead_bytes

CONTEXT_STEP = 1024
SHORTEST_CONTEXT = 4096
LARGER_BATCHES = (1024, 2048, 4096)
SMALLER_KV = ("q8_0", "q4_0")
"""Quantized KV cache types, the largest first. For others, CUDA's flash attention has kernels only
in builds with GGML_CUDA_FA_ALL_QUANTS (fattn.cu)."""
LARGEST = LevelRecipe(name="max")


def longest_context(types: Mapping[str, str], ladder: ContextLadder) -> int | None:
    """Tokens of the longest context within the ladder at which the GPUs hold the model.

    Where llama.cpp was asked for the ladder, it is asked again for what is found: that it fits as
    it is cut then, and that CONTEXT_STEP more does not.

    Returns:
        A multiple of CONTEXT_STEP, or an end of the ladder; None where not even its first rung
        fits.
    """
    while True:
        tokens = _longest_within(types, ladder)
        if tokens is None or any(buffers.estimated for _, buffers in ladder.rungs):
            return tokens
        # Between rungs the ladder is some percent off: with rungs here it is exact here.
        finer = _with_rungs(ladder, tokens, tokens + CONTEXT_STEP)
        if finer == ladder or _longest_within(types, finer) == tokens:
            return _confirmed(types, finer, tokens)
        ladder = finer


def _longest_within(types: Mapping[str, str], ladder: ContextLadder) -> int | None:
    def fits(tokens: int) -> bool:
        return place(ladder.model.tensors, types, ladder.memory(tokens)).fits

    low, high = ladder.rungs[0][0], ladder.rungs[-1][0]
    if fits(high):
        return high
    if not fits(low):
        return None
    first, last = low // CONTEXT_STEP, -(-high // CONTEXT_STEP)
    while last - first > 1:
        middle = (first + last) // 2
        first, last = (middle, last) if fits(middle * CONTEXT_STEP) else (first, middle)
    return max(low, first * CONTEXT_STEP)


def _with_rungs(ladder: ContextLadder, *tokens: int) -> ContextLadder:
    """The ladder with rungs at `tokens` too, as far as it reaches."""
    wanted = [n for n in tokens if n < ladder.rungs[-1][0]]
    if not wanted:
        return ladder
    (asked,), _ = ask_ladders(ladder.model, [ladder.target], wanted)
    return replace(ladder, rungs=tuple(sorted(dict((*ladder.rungs, *asked.rungs)).items())))


def _confirmed(types: Mapping[str, str], ladder: ContextLadder, tokens: int) -> int | None:
    """`tokens`, or the most below them at which the GPUs hold what llama.cpp needs exactly."""
    shortest = ladder.rungs[0][0]
    while tokens >= shortest:
        if place_exactly(ladder.model, types, ladder.memory(tokens)).fits:
            return tokens
        below = (tokens - 1) // CONTEXT_STEP * CONTEXT_STEP
        tokens = max(below, shortest) if tokens > shortest else below
    return None


@dataclass(frozen=True)
class Largest:
    """The largest artifact that fits: its types, its bytes, and where its layers lie."""

    types: Mapping[str, str]
    total_bytes: int
    placement: Placement


def largest_level(model: Model, costs: Costs, memory: GPUMemory) -> Largest | None:
    """The largest artifact that the GPUs hold, whatever the target's own budget; None: nothing."""
    tensors = model.tensors
    room = memory.weights_room + model_host_bytes(model, costs, memory)
    budget = min(room, largest_bytes(model, costs, LARGEST))
    overhead = overhead_bytes(model)
    try:
        types = fill_types(tensors, costs, budget, overhead, LARGEST, memory)
    except DoesNotFitError:
        return None
    placement = place(tensors, types, memory)
    total = artifact_bytes(model, types)
    return Largest(types, total, placement) if placement.fits else None


def largest_exactly(model: Model, costs: Costs, memory: GPUMemory) -> Largest | None:
    """`largest_level`, with compute buffers that llama.cpp plans for exactly its cut.

    Args:
        memory: with the compute buffers of an even cut.
    """
    assumed = memory
    for _ in range(ATTEMPTS):
        found = largest_level(model, costs, assumed)
        if found is None:
            return None
        placement = place_exactly(model, found.types, memory)
        if placement.fits:
            return replace(found, placement=placement)
        assumed = assumed.with_more_compute(placement.missing_bytes)
    return None


@dataclass(frozen=True)
class Alternatives:
    """What else would fit into the memory that a planned artifact leaves unused.

    Attributes:
        largest: the largest artifact at the target's context; None: nothing fits.
        context_tokens: the longest context for the artifact that is planned; None where it fills
            the target's own.
        ubatch_tokens: the largest physical batch, where it is larger than the target's.
    """

    largest: Largest | None
    context_tokens: int | None
    ubatch_tokens: int | None


def alternatives(
    model: Model, types: Mapping[str, str], costs: Costs, memory: GPUMemory
) -> Alternatives:
    """What else would fit into the memory that the model in `types` leaves unused."""
    target = memory.target
    longest, now = model.geometry.longest_context_tokens, memory.run.context_tokens
    (at_longest,), _ = gpu_memories(model, [target.changed(context_tokens=longest)])
    rungs = tuple(sorted({now: memory.compute, longest: at_longest.compute}.items()))
    tokens = longest_context(types, ContextLadder(model, target, rungs))
    batch = None
    for larger in larger_batches(target):
        (with_batch,), _ = gpu_memories(model, [larger])
        if not place_exactly(model, types, with_batch).fits:
            break
        batch = larger.ubatch_tokens
    return Alternatives(
        largest_level(model, costs, memory),
        tokens if tokens is not None and tokens > now else None,
        batch,
    )


def larger_batches(target: Target) -> list[Target]:
    """The target with each of LARGER_BATCHES that is larger than its own physical batch."""
    return [target.changed(ubatch_tokens=n) for n in LARGER_BATCHES if n > target.ubatch_tokens]


def ways_out(
    model: Model, costs: Costs, target: Target, types: Mapping[str, str] | None = None
) -> list[str]:
    """Plans that would fit where the requested one does not, in words and as options.

    For the target's KV cache type, and for smaller ones until the context need not be shorter: the
    longest context at which the smallest types fit, and the largest artifact at that context.

    Args:
        types: of the requested artifact where they are given: its longest context is named too.
    """
    smallest = smallest_types(model.tensors, costs, LARGEST)
    own = target.weight_budget_bytes
    too_small = own is not None and own < artifact_bytes(model, smallest)
    freed = target.changed(weight_budget_gib="auto") if too_small else target
    bits = BY_NAME[target.kv_type.upper()].bits_per_weight
    smaller = [kind for kind in SMALLER_KV if BY_NAME[kind.upper()].bits_per_weight < bits]
    kinds = possible_kv(model, smaller) if target.flash_attention else []
    targets = [freed, *(freed.changed(kv_type=kind) for kind in kinds)]
    contexts = (min(SHORTEST_CONTEXT, target.context_tokens), target.context_tokens)
    ladders, _ = ask_ladders(model, targets, contexts)
    found, whole = [], ladders[0].rungs[-1][0]
    most_kept = most = 0
    for ladder in ladders:
        kept = longest_context(types, ladder) or 0 if types is not None else whole
        if types is not None and kept > most_kept:
            changed = ladder.target.changed(context_tokens=kept)
            found.append(f"these types with {_words(target, changed, whole)}")
        tokens = longest_context(smallest, ladder) or 0
        if tokens > most:
            changed = ladder.target.changed(context_tokens=tokens)
            (memory,), _ = gpu_memories(model, [changed])
            largest = largest_exactly(model, costs, memory)
            if largest is not None:
                size = min(largest.total_bytes, changed.weight_budget_bytes or largest.total_bytes)
                words = _words(target, changed, whole, "--levels max")
                found.append(f"{_no_more_than(size)} with {words}")
        # A smaller cache is worse, and with its copies in F16 it may need more than it saves.
        most_kept, most = max(kept, most_kept), max(tokens, most)
        if most_kept == most == whole:
            break
    return found


def _words(asked: Target, changed: Target, whole: int, *options: str) -> str:
    """The context of `changed`, and the options that lead there from `asked`.

    Args:
        whole: tokens of the context that was asked for, as far as the model goes.
    """
    given = list(options)
    if changed.context_tokens != whole:
        given.append(f"--context {changed.context_tokens}")
    if changed.kv_type != asked.kv_type:
        given.append(f"--kv {changed.kv_type}")
    if changed.weight_budget_gib != asked.weight_budget_gib:
        given.append("--budget auto")
    end = f" ({' '.join(given)})" if given else ""
    return f"{changed.context_tokens:,} tokens of {changed.kv_type} context{end}"


def _no_more_than(size: int) -> str:
    """The size in GiB, or in MiB below one, rounded down, so that a level of this size fits."""
    scale, unit = (GIB, "GiB") if size >= GIB else (GIB >> 10, "MiB")
    return f"{100 * size // scale / 100:.2f} {unit}"


def possible_kv(model: Model, kinds: Sequence[str]) -> list[str]:
    """Those of `kinds` that llama.cpp keeps the model's keys and values in.

    It refuses a quantized type whose blocks do not divide a head (llama-context.cpp).
    """
    name = model.metadata["general.architecture"].value
    sizes = []
    for key in ("attention.key_length", "attention.value_length"):
        given = model.metadata.get(f"{name}.{key}")
        heads = model.geometry.attention_heads
        default = model.geometry.embedding_elements // heads if heads else 0
        size = default if given is None else given.value
        sizes += [int(n) for n in (size if isinstance(size, tuple) else (size,))]
    return [kind for kind in kinds if all(BY_NAME[kind.upper()].fits_row(size) for size in sizes)]
