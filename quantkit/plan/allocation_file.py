"""allocation.json: the type and size of every tensor of a level."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.plan.allocate import Allocation
from quantkit.study.sensitivity import Sensitivity


def allocation_json(
    allocation: Allocation, tensors: Sequence[TensorInfo], sensitivity: Sensitivity
) -> dict[str, Any]:
    """The content of allocation.json; no KLD is predicted where costs were not measured."""
    types, errors = allocation.types, sensitivity.errors
    chosen = [errors[name].get(types[name]) for name in errors]
    known = [error for error in chosen if error is not None]
    stock = allocation.stock
    return {
        "budget_bytes": allocation.budget_bytes,
        "total_bytes": allocation.total_bytes,
        "predicted_kld": allocation.cost if sensitivity.units else None,
        "summed_relative_error": math.fsum(known) if len(known) == len(chosen) else None,
        "optimality_gap": allocation.gap,
        "preset": None if stock is None else stock.preset,
        "tensors": {
            info.name: {
                "type": types[info.name],
                "bytes": BY_NAME[types[info.name]].size_bytes(info.elements),
            }
            for info in tensors
        },
        "ruled_out_by_row_length": {k: list(v) for k, v in allocation.infeasible.items()},
        "fallbacks": {} if stock is None else {k: asdict(v) for k, v in stock.fallbacks.items()},
    }


def read_types(allocation: Path) -> dict[str, str]:
    """Tensor → type from an allocation.json."""
    return {name: entry["type"] for name, entry in _read(allocation)["tensors"].items()}


def read_ruled_out(allocation: Path) -> dict[str, list[str]]:
    """Tensor → types that its row length rules out, from an allocation.json."""
    ruled_out: dict[str, list[str]] = _read(allocation)["ruled_out_by_row_length"]
    return ruled_out


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
