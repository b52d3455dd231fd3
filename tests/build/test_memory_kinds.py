"""Whole builds of models that do not keep every token in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forked import quantkit
from memory_kinds import write_kind
from small_recipes import write_recipe


@pytest.mark.timeout(600)
def test_a_model_with_sliding_windows_is_built_and_checked_beyond_them(tmp_path: Path) -> None:
    model = write_kind(tmp_path / "mixed.gguf", "mixed")
    retrieval = {
        "context_tokens": [768, 1536], "needles": 4, "answer_tokens": 8,
        "minimum_lower_bound": None,
    }  # fmt: skip
    changes: dict[str, Any] = {
        "imatrix": {"chunks": 2, "chunk_tokens": 256},
        "measure": {
            "candidates": ["Q8_0", "Q4_0"], "sample_rows": 16,
            "cost_tokens": 96, "cost_chunk_tokens": 96,
        },
        "divergence": {"chunks": 1, "chunk_tokens": 256},
        "levels": [{"name": "Q8", "bits_per_weight": 9.0}],
        "retrieval": retrieval,
    }  # fmt: skip
    recipe, out = write_recipe(tmp_path / "r.yaml", **changes), tmp_path / "out"
    options = ["--target", "1x3090", "--model", str(model), "--recipe", str(recipe)]
    finished = quantkit("build", *options, "--out", str(out))
    assert finished.returncode == 0, finished.stderr
    found = json.loads((out / "levels/Q8/validation.json").read_text())
    assert found["niah"]["forked"]
    assert found["niah"]["fork_difference"] == 0.0
    assert [rung["context_tokens"] for rung in found["niah"]["rungs"]] == [768, 1536]
    assert 0 <= found["kld"]["mean"] < 0.1
