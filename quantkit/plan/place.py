"""allocation + Target → placement.json: which layers lie on which GPU, and what each GPU holds.

llama.cpp gives layer i of n + 1 (the output counts as the last) to the first GPU whose cumulated
share of `tensor_split` is greater than i / (n + 1) (`llama-model.cpp`, load_tensors). Layer counts
used as shares therefore reproduce any contiguous placement exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from quantkit.config.target import Draft, Target
from quantkit.core.errors import DoesNotFitError
from quantkit.core.units import GIB
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.memory_plan import Breakdown
from quantkit.plan.gpu_memory import GPUMemory, host_bytes, weights_by_layer
from quantkit.plan.solver.layer_cuts import contiguous_counts, counts_in_order


@dataclass(frozen=True)
class GPUPlan:
    """What one GPU holds, bytes."""

    name: str
    layers: int
    capacity_bytes: int
    weights_bytes: int
    context_bytes: int
    compute_bytes: int
    reserve_bytes: int

    @property
    def total_bytes(self) -> int:
        parts = (self.weights_bytes, self.context_bytes, self.compute_bytes, self.reserve_bytes)
        return sum(parts)

    @property
    def free_bytes(self) -> int:
        return self.capacity_bytes - self.total_bytes


@dataclass(frozen=True)
class Placement:
    """The plan for a GPU set.

    Attributes:
        tensor_split: llama.cpp's `-ts`, one share a GPU: its number of layers.
        trained_context_tokens: what the model was trained for; the plan never exceeds it.
        devices: each GPU's name for CUDA, where the target has them.
        host_bytes: of weights in the computer's own memory.
        host_compute_bytes: of compute buffers there.
        estimated: the compute buffers are, because llama.cpp could not be asked.
    """

    context_tokens: int
    trained_context_tokens: int
    kv_type: str
    ubatch_tokens: int
    sequences: int
    flash_attention: bool
    pipeline: bool
    devices: tuple[str, ...]
    draft: Draft
    tensor_split: tuple[int, ...]
    gpus: tuple[GPUPlan, ...]
    host_bytes: int
    host_compute_bytes: int
    estimated: bool

    @property
    def fits(self) -> bool:
        return all(gpu.free_bytes >= 0 for gpu in self.gpus)

    @property
    def missing_bytes(self) -> int:
        """What the fullest GPU lacks; 0 when everything fits."""
        return max(0, -min(gpu.free_bytes for gpu in self.gpus))

    def with_compute(self, answer: Breakdown) -> Placement:
        """This placement with what llama.cpp plans beside weights for exactly this cut.

        Of the context too: of layers that attend to a window only it keeps less than is planned.
        """
        gpus = tuple(
            replace(gpu, context_bytes=asked.context, compute_bytes=asked.compute)
            for gpu, asked in zip(self.gpus, answer.gpus, strict=True)
        )
        return replace(self, gpus=gpus, host_compute_bytes=answer.host.compute, estimated=False)


def assign_layers(gpu_shares: Sequence[int], count: int) -> list[int]:
    """GPU of each of `count` layers as llama.cpp assigns them, in its own F32 arithmetic."""
    cumulated = np.cumsum(np.asarray(gpu_shares, np.float32), dtype=np.float32)
    points = cumulated / cumulated[-1]
    layers = np.arange(count, dtype=np.float32) / np.float32(count)
    return [int(gpu) for gpu in np.searchsorted(points, layers, side="right")]


def place(
    tensors: Sequence[TensorInfo],
    types: Mapping[str, str],
    memory: GPUMemory,
    target: Target,
) -> Placement:
    """Contiguous layers on each GPU: spread such that the fullest has the most left, or in order.

    The result may not fit (`fits`); `check_fits` turns that into an error with a way out.
    """
    weights = weights_by_layer(tensors, types, len(memory.context), memory.unloaded)
    load = [w + k for w, k in zip(weights, memory.kept, strict=True)]
    divide = contiguous_counts if target.layers == "balanced" else counts_in_order
    counts = divide(load, memory.rooms)
    wanted = [gpu for gpu, count in enumerate(counts) for _ in range(count)]
    if assign_layers(counts, len(load)) != wanted:
        raise AssertionError(f"llama.cpp would not place {counts} layers as asked")
    plans = []
    at = 0
    for index, (gpu, count) in enumerate(zip(target.each_gpu, counts, strict=True)):
        has_output = count > 0 and at + count == len(load)
        compute = (memory.compute.gpu if count else 0) + (
            memory.compute.output if has_output else 0
        )
        plans.append(
            GPUPlan(
                name=gpu.name,
                layers=count,
                capacity_bytes=memory.capacity[index],
                weights_bytes=sum(weights[at : at + count]),
                context_bytes=sum(memory.context[at : at + count]),
                compute_bytes=compute,
                reserve_bytes=memory.reserve[index],
            )
        )
        at += count
    return Placement(
        context_tokens=memory.context_tokens,
        trained_context_tokens=memory.trained_context_tokens,
        kv_type=target.kv_type,
        ubatch_tokens=target.ubatch_tokens,
        sequences=target.sequences,
        flash_attention=target.flash_attention,
        pipeline=target.pipeline,
        devices=target.devices,
        draft=target.draft,
        tensor_split=tuple(counts),
        gpus=tuple(plans),
        host_bytes=host_bytes(tensors, types),
        host_compute_bytes=memory.compute.host,
        estimated=memory.compute.estimated,
    )


def check_fits(placement: Placement, target: Target) -> None:
    """Raise when a GPU overflows.

    Raises:
        DoesNotFitError: says by how much, and what would fit.
    """
    if placement.fits:
        return
    worst = min(placement.gpus, key=lambda gpu: gpu.free_bytes)
    raise DoesNotFitError(
        f"does not fit {target.name}: {worst.name} would need "
        f"{worst.total_bytes / GIB:.2f} GiB of {worst.capacity_bytes / GIB:.2f} GiB "
        f"({-worst.free_bytes / GIB:.2f} GiB too much: weights {worst.weights_bytes / GIB:.2f}, "
        f"context {worst.context_bytes / GIB:.2f}, compute {worst.compute_bytes / GIB:.2f}, "
        f"reserve {worst.reserve_bytes / GIB:.2f}); shorten the context "
        f"(now {placement.context_tokens} tokens), lower the weight budget, or add a GPU"
    )
