"""Placement: which layers lie on which GPU, and what each GPU holds; the content of placement.json.

llama.cpp gives layer i of n + 1 (the output counts as the last) to the first GPU whose cumulated
share of `tensor_split` is greater than i / (n + 1) (`llama-model.cpp`, load_tensors). Layer counts
used as shares therefore reproduce any contiguous placement exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import numpy as np
from pydantic import Field, model_validator

from quantkit.config.target import RunSettings
from quantkit.core.documents import JsonDocument, Record
from quantkit.core.errors import DoesNotFitError
from quantkit.core.units import GIB
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.memory_plan import Breakdown
from quantkit.plan.gpu_memory import EMBEDDING, GPUMemory, padded_bytes, weights_by_layer
from quantkit.plan.solver import contiguous_counts, counts_in_order

PLACEMENT_FILE = "placement.json"
Count = Annotated[int, Field(ge=0)]


class GPUPlan(Record):
    """What one GPU holds, bytes."""

    name: str
    layers: Count
    capacity_bytes: Count
    weights_bytes: Count
    context_bytes: Count
    compute_bytes: Count
    reserve_bytes: Count

    @property
    def total_bytes(self) -> int:
        parts = (self.weights_bytes, self.context_bytes, self.compute_bytes, self.reserve_bytes)
        return sum(parts)

    @property
    def free_bytes(self) -> int:
        """What is left; below 0 where it does not fit."""
        return self.capacity_bytes - self.total_bytes


class Placement(Record):
    """The plan for a GPU set.

    Attributes:
        run: how the model is run; its context is never longer than the model was trained for.
        host_bytes: of weights in the computer's own memory.
        host_compute_bytes: of compute buffers there.
        compute_is_estimated: because llama.cpp could not be asked.
    """

    run: RunSettings
    trained_context_tokens: int
    gpus: tuple[GPUPlan, ...]
    host_bytes: Count
    host_compute_bytes: Count
    compute_is_estimated: bool

    @model_validator(mode="after")
    def _possible(self) -> Placement:
        if not any(self.tensor_split):
            raise ValueError("no GPU has a layer")
        if self.run.context_tokens > self.trained_context_tokens:
            raise ValueError(
                f"a context of {self.run.context_tokens} tokens is longer than the model was "
                f"trained for, {self.trained_context_tokens}"
            )
        return self

    @property
    def tensor_split(self) -> tuple[int, ...]:
        """llama.cpp's `-ts`, one share a GPU: its number of layers."""
        return tuple(gpu.layers for gpu in self.gpus)

    @property
    def fits(self) -> bool:
        return not self.missing_bytes

    @property
    def missing_bytes(self) -> int:
        """What the fullest GPU lacks; 0 when everything fits."""
        return max(0, -min(gpu.free_bytes for gpu in self.gpus))

    def with_compute(self, answer: Breakdown) -> Placement:
        """This placement with what llama.cpp plans beside weights for exactly this cut.

        Of the context too: of layers that attend to a window only it keeps less than is planned.
        """
        gpus = tuple(
            gpu.model_copy(update={"context_bytes": told.context, "compute_bytes": told.compute})
            for gpu, told in zip(self.gpus, answer.gpus, strict=True)
        )
        update = {"gpus": gpus, "host_compute_bytes": answer.host.compute}
        return self.model_copy(update={**update, "compute_is_estimated": False})


class PlacementFile(JsonDocument):
    """placement.json.

    Attributes:
        command: starts llama-server as planned.
    """

    version: Literal[1] = 1
    command: str
    placement: Placement


def check_fits(placement: Placement, target: str) -> None:
    """Raise when a GPU overflows.

    Args:
        target: its name, for the message.

    Raises:
        DoesNotFitError: says by how much, and what would fit.
    """
    if placement.fits:
        return
    worst = min(placement.gpus, key=lambda gpu: gpu.free_bytes)
    raise DoesNotFitError(
        f"does not fit {target}: {worst.name} would need "
        f"{worst.total_bytes / GIB:.2f} GiB of {worst.capacity_bytes / GIB:.2f} GiB "
        f"({-worst.free_bytes / GIB:.2f} GiB too much: weights {worst.weights_bytes / GIB:.2f}, "
        f"context {worst.context_bytes / GIB:.2f}, compute {worst.compute_bytes / GIB:.2f}, "
        f"reserve {worst.reserve_bytes / GIB:.2f}); shorten the context "
        f"(now {placement.run.context_tokens} tokens), lower the weight budget, or add a GPU"
    )


def assign_layers(gpu_shares: Sequence[int], count: int) -> list[int]:
    """GPU of each of `count` layers as llama.cpp assigns them, in its own F32 arithmetic."""
    cumulated = np.cumsum(np.asarray(gpu_shares, np.float32), dtype=np.float32)
    points = cumulated / cumulated[-1]
    layers = np.arange(count, dtype=np.float32) / np.float32(count)
    return [int(gpu) for gpu in np.searchsorted(points, layers, side="right")]


def place(tensors: Sequence[TensorInfo], types: Mapping[str, str], memory: GPUMemory) -> Placement:
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
    plans, stop = [], 0
    for index, (gpu, count) in enumerate(zip(memory.target.each_gpu, counts, strict=True)):
        start, stop = stop, stop + count
        output = memory.compute.output if stop == len(load) else 0
        plans.append(
            GPUPlan(
                name=gpu.name,
                layers=count,
                capacity_bytes=memory.capacity[index],
                weights_bytes=sum(weights[start:stop]),
                context_bytes=sum(memory.context[start:stop]),
                compute_bytes=memory.compute.gpu + output if count else 0,
                reserve_bytes=memory.reserve[index],
            )
        )
    return Placement(
        run=memory.run,
        trained_context_tokens=memory.trained_context_tokens,
        gpus=tuple(plans),
        host_bytes=sum(padded_bytes(i, types[i.name]) for i in tensors if i.name == EMBEDDING),
        host_compute_bytes=memory.compute.host,
        compute_is_estimated=memory.compute.estimated,
    )
