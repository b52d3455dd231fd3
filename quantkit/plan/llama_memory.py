"""A target's memory for a model, with the compute buffers that llama.cpp itself plans.

llama.cpp is asked on stand-ins for the target's GPUs (`native/memory.py`), with the model's shape
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
    ComputeBuffers,
    GPUMemory,
    check_draft,
    drafted_tokens,
    gpu_memory,
    planned_tokens,
)

MOST_GPUS = 15
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
    """CUDA GPUs of the target's sizes."""
    return Devices("cuda", tuple(int(gpu.memory_gib * GIB) for gpu in target.each_gpu))


def asked_memories(
    metadata: Metadata,
    tensors: Sequence[TensorInfo],
    geometry: ModelGeometry,
    targets: Sequence[Target],
) -> tuple[list[GPUMemory], str | None]:
    """The memory of each of `targets`; llama.cpp is asked of all of them at once.

    It is told how many layers each GPU gets, and so plans alike for GPUs of any size: targets
    that have as many GPUs share a question.

    Returns:
        The memories, and why the compute buffers are only estimated, if they are.

    Raises:
        InputError: llama.cpp refuses the model, a target has too many GPUs for it, or the model
            cannot draft tokens and should.
    """
    alike: dict[int, list[Target]] = {}
    for target in targets:
        check_gpus(target)
        check_draft(geometry, target)
        alike.setdefault(len(target.each_gpu), []).append(target)
    shapes = []
    for gpus, same in alike.items():
        counts = even_counts(len(geometry.layers) + 1, gpus)
        uses = tuple(dict.fromkeys(use_of(geometry, target) for target in same))
        shapes.append(Shape(metadata, tensors, stand_ins(same[0]), counts, uses))
    try:
        answers = ask_memory(shapes)
    except EnvironmentFault as error:
        estimated = [gpu_memory(geometry, target) for target in targets]
        return estimated, f"compute buffers are estimated: {error}"
    buffers = {
        (len(shape.tensor_split), use): buffers_of(answer, shape.tensor_split)
        for shape, of_uses in zip(shapes, answers, strict=True)
        for use, answer in zip(shape.uses, of_uses, strict=True)
    }
    asked = [(target, len(target.each_gpu), use_of(geometry, target)) for target in targets]
    return [gpu_memory(geometry, t, buffers[gpus, use]) for t, gpus, use in asked], None


def check_gpus(target: Target) -> None:
    """Raise when llama.cpp cannot use so many GPUs.

    Raises:
        InputError: says how many it can.
    """
    gpus = len(target.each_gpu)
    if gpus > MOST_GPUS:
        raise InputError(
            f"target {target.name} has {gpus} GPUs, but one llama.cpp uses at most {MOST_GPUS} "
            "(GGML_SCHED_MAX_BACKENDS); leave the others out of it"
        )


def even_counts(layers: int, gpus: int) -> tuple[int, ...]:
    """Layers of each GPU when they are spread evenly, the later ones getting the rest."""
    return tuple(layers * (i + 1) // gpus - layers * i // gpus for i in range(gpus))


def buffers_of(answer: Breakdown, counts: Sequence[int]) -> ComputeBuffers:
    """The compute buffers, for cuts near an even one: of GPUs without the output the largest.

    Where only the output's GPU attends, the mask is counted with the output; another cut is mended
    when it is asked for exactly.

    Args:
        counts: layers of each GPU, the output being the last.
    """
    used = [gpu.compute for gpu, count in zip(answer.gpus, counts, strict=True) if count]
    gpu = max(used[:-1], default=used[-1])
    return ComputeBuffers(gpu, max(0, used[-1] - gpu), answer.host.compute, estimated=False)


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
    goes, which on one GPU can be a tenth off: what is found so is to be asked for again.

    Attributes:
        rungs: (tokens, buffers), at least one, in the order of tokens.
    """

    geometry: ModelGeometry
    target: Target
    rungs: tuple[tuple[int, ComputeBuffers], ...]

    def memory(self, tokens: int) -> GPUMemory:
        """The memory at a context between the first rung and the last."""
        changed = self.target.changed(context_tokens=tokens)
        ends = [at for at, _ in self.rungs]
        upper = min(bisect.bisect_left(ends, tokens), len(ends) - 1)
        lower = max(upper - 1, 0)
        (low, a), (high, b) = self.rungs[lower], self.rungs[upper]
        share = (tokens - low) / (high - low) if high > low else 1.0

        def between(x: int, y: int) -> int:
            return math.ceil(x + share * (y - x))

        whole = between(a.gpu + a.output, b.gpu + b.output)
        gpu = between(a.gpu, b.gpu)
        buffers = ComputeBuffers(
            gpu, max(0, whole - gpu), between(a.host, b.host), a.estimated or b.estimated
        )
        return gpu_memory(self.geometry, changed, buffers)


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
        InputError: llama.cpp refuses the model, or a target has too many GPUs for it.
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
