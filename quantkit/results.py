"""The JSON that a build leaves for people and programs, with units in the names."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantkit.native.presets import Fallback
from quantkit.quant_types import BY_NAME
from quantkit.receipts import Receipt
from quantkit.sensitivity import Sensitivity
from quantkit.stages.allocate import Allocation
from quantkit.stages.place import Placement
from quantkit.values import Divergence, TensorInfo


@dataclass(frozen=True)
class LevelResult:
    """One level as the closing table and the report show it.

    Attributes:
        files: relative to the build folder.
        lengths: (context tokens, hits, trials, lower bound), shortest first.
        predicted_kld: the sum of the tensors' measured costs; None where there is none.
        fallbacks: of a preset, in words.
        kld: divergence from the base; None when it was not measured.
    """

    name: str
    baseline: bool
    passed: bool
    files: tuple[str, ...]
    size_bytes: int
    bits_per_weight: float
    card_bytes: tuple[int, ...]
    card_capacity_bytes: tuple[int, ...]
    context_tokens: int
    command: str
    lengths: tuple[tuple[int, int, int, float], ...]
    kld: Divergence | None
    types: dict[str, int]
    heatmap: str
    verdict: str
    predicted_kld: float | None = None
    fallbacks: str = ""


def verdict(validation: Mapping[str, Any], *, baseline: bool) -> str:
    """`passed`, `FAILED`, what a failure means for a baseline, or that nothing was asked."""
    if validation["niah"]["minimum_lower_bound"] is None:
        return "no gate"
    if validation["passed"]:
        return "passed"
    return "failed, a baseline" if baseline else "FAILED"


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


def fallback_text(fallbacks: Mapping[str, Fallback]) -> str:
    """`12 tensors fell back: 10 Q4_K → Q5_0, 2 Q6_K → Q8_0`; empty where none did."""
    pairs = Counter((f.wanted, f.given) for f in fallbacks.values()).most_common()
    count = len(fallbacks)
    words = ", ".join(f"{n} {wanted} → {given}" for (wanted, given), n in pairs)
    return f"{count} tensor{'s' * (count > 1)} fell back: {words}" if count else ""


def placement_json(placement: Placement, command: str) -> dict[str, Any]:
    """The content of placement.json; `command` starts llama-server as planned."""
    return {
        "context_tokens": placement.context_tokens,
        "trained_context_tokens": placement.trained_context_tokens,
        "kv_type": placement.kv_type,
        "ubatch_tokens": placement.ubatch_tokens,
        "sequences": placement.sequences,
        "flash_attention": placement.flash_attention,
        "pipeline": placement.pipeline,
        "draft": placement.draft,
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
        "host_compute_bytes": placement.host_compute_bytes,
        "compute_is_estimated": placement.estimated,
        "fits": placement.fits,
        "command": command,
    }


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def read_types(allocation: Path) -> dict[str, str]:
    """Tensor → type from an allocation.json."""
    return {name: entry["type"] for name, entry in _read(allocation)["tensors"].items()}


def read_ruled_out(allocation: Path) -> dict[str, list[str]]:
    """Tensor → types that its row length rules out, from an allocation.json."""
    ruled_out: dict[str, list[str]] = _read(allocation)["ruled_out_by_row_length"]
    return ruled_out


def read_tensor_split(placement: Path) -> tuple[float, ...]:
    """llama.cpp's `-ts` from a placement.json."""
    return tuple(float(share) for share in _read(placement)["tensor_split"])


def read_level(
    build: Path, name: str, quantized: Receipt, parameters: int, *, baseline: bool
) -> LevelResult:
    """Put together what the folder `build` says of the finished level `name`."""
    folder = build / "levels" / name
    validation, placement = _read(folder / "validation.json"), _read(folder / "placement.json")
    allocation = _read(folder / "allocation.json")
    size = sum(output.size_bytes for output in quantized.outputs)
    kld = validation["kld"]
    return LevelResult(
        name=name,
        baseline=baseline,
        passed=validation["passed"],
        files=tuple(output.path for output in quantized.outputs),
        size_bytes=size,
        bits_per_weight=8 * size / parameters,
        card_bytes=tuple(card["total_bytes"] for card in placement["cards"]),
        card_capacity_bytes=tuple(card["capacity_bytes"] for card in placement["cards"]),
        context_tokens=placement["context_tokens"],
        command=placement["command"],
        lengths=tuple(
            (s["context_tokens"], s["hits"], s["trials"], s["lower_bound"])
            for s in validation["niah"]["lengths"]
        ),
        kld=None if kld is None else Divergence(**kld),
        types=dict(Counter(e["type"] for e in allocation["tensors"].values()).most_common()),
        heatmap=f"levels/{name}/heatmap.png",
        verdict=verdict(validation, baseline=baseline),
        predicted_kld=allocation["predicted_kld"],
        fallbacks=fallback_text({k: Fallback(**v) for k, v in allocation["fallbacks"].items()}),
    )
