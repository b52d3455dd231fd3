"""Puts contiguous layers on the GPUs of a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantkit.formats.tensors import TensorInfo
from quantkit.plan.gpu_memory import GPUMemory, host_bytes, weights_by_layer
from quantkit.plan.layer_cuts import contiguous_counts, counts_in_order
from quantkit.plan.placement import GPUPlan, Placement


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
) -> Placement:
    """Contiguous layers on each GPU: spread such that the fullest has the most left, or in order.

    The result may not fit (`fits`); `check_fits` turns that into an error with a way out.
    """
    weights = weights_by_layer(tensors, types, len(memory.context), memory.unloaded)
    load = [w + k for w, k in zip(weights, memory.kept, strict=True)]
    divide = contiguous_counts if memory.target.layers == "balanced" else counts_in_order
    counts = divide(load, memory.rooms)
    wanted = [gpu for gpu, count in enumerate(counts) for _ in range(count)]
    if assign_layers(counts, len(load)) != wanted:
        raise AssertionError(f"llama.cpp would not place {counts} layers as asked")
    plans = []
    at = 0
    for index, (gpu, count) in enumerate(zip(memory.target.each_gpu, counts, strict=True)):
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
        run=memory.run,
        trained_context_tokens=memory.trained_context_tokens,
        gpus=tuple(plans),
        host_bytes=host_bytes(tensors, types),
        host_compute_bytes=memory.compute.host,
        compute_is_estimated=memory.compute.estimated,
    )
