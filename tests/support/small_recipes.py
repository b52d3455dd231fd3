"""Small recipes for whole builds in tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml


def write_recipe(path: Path, **changes: object) -> Path:
    """A recipe that builds the demo model in seconds: short text, few types, few needles.

    No type's tables take ggml seconds to make, as those of IQ1 and IQ2 do.
    """
    content: dict[str, Any] = {
        "name": "tiny",
        "imatrix": {"chunks": 2, "chunk_tokens": 128},
        "measure": {
            "candidates": ["Q8_0", "Q6_K", "Q5_0", "Q4_K", "Q4_0", "Q2_K"],
            "sample_rows": 16,
            "sample_experts": 2,
            "cost_tokens": 32,
            "cost_chunk_tokens": 32,
        },
        "levels": [{"name": "Q8", "bits_per_weight": 8.6}, {"name": "Q4", "bits_per_weight": 4.6}],
        "retrieval": {
            "context_tokens": [384],
            "needles": 4,
            "answer_tokens": 8,
            "minimum_lower_bound": None,
        },
        "divergence": {"chunks": 1, "chunk_tokens": 128},
    }
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path
