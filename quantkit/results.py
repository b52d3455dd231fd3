"""The JSON that a build leaves for people and programs, with units in the names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from quantkit.quant_types import BY_NAME
from quantkit.stages.allocate import Allocation
from quantkit.stages.place import Placement
from quantkit.values import TensorInfo


@dataclass(frozen=True)
class LevelResult:
    """One level as the closing table and the report show it.

    Attributes:
        gated: whether the recipe asks for a bound at all; without one everything passes.
        files: relative to the build folder.
        lengths: (context tokens, hits, trials, lower bound), shortest first.
        kld: mean divergence from the base, nats; None when it was not measured.
    """

    name: str
    baseline: bool
    passed: bool
    gated: bool
    files: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    card_bytes: tuple[int, ...]
    card_capacity_bytes: tuple[int, ...]
    context_tokens: int
    command: str
    lengths: tuple[tuple[int, int, int, float], ...]
    kld: float | None
    same_top: float | None
    types: dict[str, int]
    heatmap: str

    @property
    def verdict(self) -> str:
        """`passed`, `FAILED`, what a failure means for a baseline, or that nothing was asked."""
        if not self.gated:
            return "no gate"
        if self.passed:
            return "passed"
        return "failed, a baseline" if self.baseline else "FAILED"


def allocation_json(allocation: Allocation, tensors: Sequence[TensorInfo]) -> dict[str, Any]:
    """The content of allocation.json; no KLD is predicted before sensitivities are measured."""
    return {
        "budget_bytes": allocation.budget_bytes,
        "total_bytes": allocation.total_bytes,
        "predicted_kld": None,
        "summed_relative_error": allocation.summed_error,
        "optimality_gap": allocation.gap,
        "tensors": {
            info.name: {
                "type": allocation.types[info.name],
                "bytes": BY_NAME[allocation.types[info.name]].size_bytes(info.elements),
            }
            for info in tensors
        },
        "ruled_out_by_row_length": {k: list(v) for k, v in allocation.infeasible.items()},
    }


def placement_json(placement: Placement, model_file: str) -> dict[str, Any]:
    """The content of placement.json."""
    return {
        "context_tokens": placement.context_tokens,
        "trained_context_tokens": placement.trained_context_tokens,
        "kv_type": placement.kv_type,
        "ubatch_tokens": placement.ubatch_tokens,
        "tensor_split": list(placement.tensor_split),
        "cards": [
            {
                "name": card.name,
                "layers": card.layers,
                "capacity_bytes": card.capacity_bytes,
                "weights_bytes": card.weights_bytes,
                "context_bytes": card.context_bytes,
                "compute_bytes": card.compute_bytes,
                "reserve_bytes": card.reserve_bytes,
                "total_bytes": card.total_bytes,
            }
            for card in placement.cards
        ],
        "host_bytes": placement.host_bytes,
        "fits": placement.fits,
        "command": placement.command(model_file),
    }
