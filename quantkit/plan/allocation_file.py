"""allocation.json: the type and size of every tensor of a level."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, Self

from pydantic import Field

from quantkit.core.documents import JsonDocument, Record
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.presets import Fallback
from quantkit.plan.allocate import Allocation
from quantkit.study.sensitivity import Estimate, Sensitivity


class AllocatedTensor(Record):
    """A tensor's type, and its bytes in it without padding; 0 where they are not known."""

    type: str
    bytes: int = 0


class AllocationFile(JsonDocument):
    """allocation.json; one that a person writes needs only `tensors`, with a type for each.

    Attributes:
        total_bytes: of the whole file: tensors, header and alignment.
        predicted_kld: the sum of the tensors' measured costs, nats; None where there is none.
        predicted_kld_error: its standard error, from the spread of the chunks of the text that
            costs were measured on; None where that has one chunk.
        summed_relative_error: None where a type's error was not measured.
        optimality_gap: proven distance to the optimum, relative; None for a preset.
        preset: llama.cpp's stock preset whose types these are, if any.
        tensors: all of the model, in file order.
        ruled_out_by_row_length: tensor → types that its rows do not divide into.
        fallbacks: of the preset, by tensor.
    """

    unversioned = 1
    version: Literal[1] = 1
    budget_bytes: int = 0
    total_bytes: int = 0
    predicted_kld: float | None = None
    predicted_kld_error: float | None = None
    summed_relative_error: float | None = None
    optimality_gap: float | None = None
    preset: str | None = None
    tensors: dict[str, AllocatedTensor]
    ruled_out_by_row_length: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    fallbacks: dict[str, Fallback] = Field(default_factory=dict)

    @classmethod
    def of(
        cls, allocation: Allocation, tensors: Sequence[TensorInfo], sensitivity: Sensitivity
    ) -> Self:
        types, errors, stock = allocation.types, sensitivity.errors, allocation.stock
        chosen = [errors[name].get(types[name]) for name in errors]
        known = [error for error in chosen if error is not None]
        predicted = None if allocation.cost is None else _predicted(types, tensors, sensitivity)
        return cls(
            budget_bytes=allocation.budget_bytes,
            total_bytes=allocation.total_bytes,
            predicted_kld=None if predicted is None else allocation.cost,
            predicted_kld_error=None if predicted is None else predicted.known_error,
            summed_relative_error=math.fsum(known) if len(known) == len(chosen) else None,
            optimality_gap=allocation.gap,
            preset=None if stock is None else stock.preset,
            tensors={
                info.name: AllocatedTensor(
                    type=types[info.name],
                    bytes=BY_NAME[types[info.name]].size_bytes(info.elements),
                )
                for info in tensors
            },
            ruled_out_by_row_length=dict(allocation.infeasible),
            fallbacks={} if stock is None else dict(stock.fallbacks),
        )

    @property
    def types(self) -> dict[str, str]:
        return {name: tensor.type for name, tensor in self.tensors.items()}

    @property
    def type_counts(self) -> dict[str, int]:
        """Type → how many tensors have it, the most frequent first."""
        return dict(Counter(self.types.values()).most_common())

    @property
    def fallback_text(self) -> str:
        return fallback_text(self.fallbacks)


def _predicted(
    types: Mapping[str, str], tensors: Sequence[TensorInfo], sensitivity: Sensitivity
) -> Estimate | None:
    """The KLD of tensors that get another type than the model's."""
    changed = {i.name: types[i.name] for i in tensors if types[i.name] != i.type_name}
    return sensitivity.predicted(changed)


def fallback_text(fallbacks: Mapping[str, Fallback]) -> str:
    """`12 tensors fell back: 10 Q4_K → Q5_0, 2 Q6_K → Q8_0`; empty where none did."""
    pairs = Counter((f.wanted, f.given) for f in fallbacks.values()).most_common()
    count = len(fallbacks)
    words = ", ".join(f"{n} {wanted} → {given}" for (wanted, given), n in pairs)
    return f"{count} tensor{'s' * (count > 1)} fell back: {words}" if count else ""
