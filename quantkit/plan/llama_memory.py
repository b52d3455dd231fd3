"""A target's memory for a model, with the compute buffers that llama.cpp itself plans.

llama.cpp is asked on stand-ins for the target's cards (`native/memory.py`), with the model's shape
alone. Before the layers are placed they are taken to lie evenly; afterwards the exact cut is asked
for, so a placement's numbers are llama.cpp's own.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from quantkit.config.target import Target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.units import GIB
from quantkit.formats.tensors import Metadata, TensorInfo
from quantkit.llamacpp.device_sets import Devices
from quantkit.llamacpp.memory_plan import Breakdown, Shape, Use, ask_memory
from quantkit.models.geometry import ModelGeometry
from quantkit.plan.gpu_memory import (
    CardMemory,
    ComputeBuffers,
    card_memory,
    check_draft,
    drafted_tokens,
    planned_tokens,
)

MOST_CARDS = 15
"""ggml's scheduler takes 16 backends (GGML_SCHED_MAX_BACKENDS), one of which is the processor."""


def use_of(geometry: ModelGeometry, target: Target) -> Use:
    """How the target runs the model."""
    return Use(
        context_tokens=planned_tokens(geometry, target),
        kv_type=target.kv_type,
        ubatch_tokens=target.ubatch_tokens,
        sequences=target.sequences,
        flash_attention=target.flash_attention,
        pipeline=target.pipeline,
        drafted_tokens=drafted_tokens(target),
    )


def stand_ins(target: Target) -> Devices:
    """CUDA cards of the target's sizes."""
    return Devices("cuda", tuple(int(card.memory_gib * GIB) for card in target.each_card))


def asked_memories(
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    geometry: ModelGeometry,
    targets: Sequence[Target],
) -> tuple[list[CardMemory], str | None]:
    """The memory of each of `targets`; llama.cpp is asked of all of them at once.

    It is told how many layers each card gets, and so plans alike for cards of any size: targets
    that have as many cards share a question.

    Returns:
        The memories, and why the compute buffers are only estimated, if they are.

    Raises:
        InputError: llama.cpp refuses the model, a target has too many cards for it, or the model
            cannot draft tokens and should.
    """
    alike: dict[int, list[Target]] = {}
    for target in targets:
        check_cards(target)
        check_draft(geometry, target)
        alike.setdefault(len(target.each_card), []).append(target)
    shapes = []
    for cards, same in alike.items():
        counts = even_counts(len(geometry.layers) + 1, cards)
        uses = tuple(dict.fromkeys(use_of(geometry, target) for target in same))
        shapes.append(Shape(metadata, tensors, stand_ins(same[0]), counts, uses))
    try:
        answers = ask_memory(shapes)
    except EnvironmentFault as error:
        estimated = [card_memory(geometry, target) for target in targets]
        return estimated, f"compute buffers are estimated: {error}"
    buffers = {
        (len(shape.tensor_split), use): buffers_of(answer, shape.tensor_split)
        for shape, of_uses in zip(shapes, answers, strict=True)
        for use, answer in zip(shape.uses, of_uses, strict=True)
    }
    asked = [(target, len(target.each_card), use_of(geometry, target)) for target in targets]
    return [card_memory(geometry, t, buffers[cards, use]) for t, cards, use in asked], None


def check_cards(target: Target) -> None:
    """Raise when llama.cpp cannot use so many cards.

    Raises:
        InputError: says how many it can.
    """
    cards = len(target.each_card)
    if cards > MOST_CARDS:
        raise InputError(
            f"target {target.name} has {cards} cards, but one llama.cpp uses at most {MOST_CARDS} "
            "(GGML_SCHED_MAX_BACKENDS); leave the others out of it"
        )


def even_counts(layers: int, cards: int) -> tuple[int, ...]:
    """Layers of each card when they are spread evenly, the later ones getting the rest."""
    return tuple(layers * (i + 1) // cards - layers * i // cards for i in range(cards))


def buffers_of(answer: Breakdown, counts: Sequence[int]) -> ComputeBuffers:
    """The compute buffers, for cuts near an even one: of cards without the output the largest.

    Where only the output's card attends, the mask is counted with the output; another cut is mended
    when it is asked for exactly.

    Args:
        counts: layers of each card, the output being the last.
    """
    used = [card.compute for card, count in zip(answer.cards, counts, strict=True) if count]
    card = max(used[:-1], default=used[-1])
    return ComputeBuffers(card, max(0, used[-1] - card), answer.host.compute, estimated=False)


def shape_of(
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    types: Mapping[str, str],
    use: Use,
    devices: Devices,
    counts: Sequence[int],
) -> Shape:
    """The question what `devices` hold of the model in `types`, cut into `counts` layers."""
    typed = [replace(info, type_name=types[info.name]) for info in tensors]
    return Shape(metadata, typed, devices, tuple(counts), (use,))


@dataclass(frozen=True)
class ContextLadder:
    """Compute buffers of a way of running at some contexts, and what lies between them.

    A buffer is about the largest of several sums that grow linearly with the context, so between
    two rungs it is seldom more than the straight line between them. ggml's allocator packs as it
    goes, which on one card can be a tenth off: what is found so is to be asked for again.

    Attributes:
        rungs: (tokens, buffers), at least one, in the order of tokens.
    """

    geometry: ModelGeometry
    target: Target
    rungs: tuple[tuple[int, ComputeBuffers], ...]

    def memory(self, tokens: int) -> CardMemory:
        """The memory at a context between the first rung and the last."""
        changed = self.target.changed(context_tokens=tokens)
        ends = [at for at, _ in self.rungs]
        upper = min(bisect.bisect_left(ends, tokens), len(ends) - 1)
        lower = max(upper - 1, 0)
        (low, a), (high, b) = self.rungs[lower], self.rungs[upper]
        share = (tokens - low) / (high - low) if high > low else 1.0

        def between(x: int, y: int) -> int:
            return math.ceil(x + share * (y - x))

        whole = between(a.card + a.output, b.card + b.output)
        card = between(a.card, b.card)
        buffers = ComputeBuffers(
            card, max(0, whole - card), between(a.host, b.host), a.estimated or b.estimated
        )
        return card_memory(self.geometry, changed, buffers)


def ask_ladders(
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    geometry: ModelGeometry,
    targets: Sequence[Target],
    contexts: Sequence[int],
) -> tuple[list[ContextLadder], str | None]:
    """A ladder over `contexts`, tokens, for each of `targets`; llama.cpp is asked once.

    Returns:
        The ladders, and why their compute buffers are only estimated, if they are.

    Raises:
        InputError: llama.cpp refuses the model, or a target has too many cards for it.
    """
    tokens = sorted({min(n, geometry.trained_context_tokens) for n in contexts})
    asked = [target.changed(context_tokens=n) for target in targets for n in tokens]
    memories, why = asked_memories(metadata, tensors, geometry, asked)
    found = []
    for index, target in enumerate(targets):
        part = memories[index * len(tokens) : (index + 1) * len(tokens)]
        rungs = tuple((n, m.compute) for n, m in zip(tokens, part, strict=True))
        found.append(ContextLadder(geometry, target, rungs))
    return found, why
