"""placement.json: which layers go to which GPU, and what they take there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quantkit.plan.place import Placement


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
        "gpus": [
            {
                "name": gpu.name,
                "layers": gpu.layers,
                "capacity_bytes": gpu.capacity_bytes,
                "weights_bytes": gpu.weights_bytes,
                "context_bytes": gpu.context_bytes,
                "compute_bytes": gpu.compute_bytes,
                "reserve_bytes": gpu.reserve_bytes,
                "total_bytes": gpu.total_bytes,
            }
            for gpu in placement.gpus
        ],
        "host_bytes": placement.host_bytes,
        "host_compute_bytes": placement.host_compute_bytes,
        "compute_is_estimated": placement.estimated,
        "fits": placement.fits,
        "command": command,
    }


def read_tensor_split(placement: Path) -> tuple[float, ...]:
    """llama.cpp's `-ts` from a placement.json."""
    return tuple(float(share) for share in _read(placement)["tensor_split"])


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content
