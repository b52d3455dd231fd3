"""`quantkit measure`: what it writes and prints, killed and wrong."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from demo_artifacts import write_demo
from forked import facts, printed, refused, start
from places import DATA
from small_recipes import write_recipe

from quantkit.study.sensitivity import Sensitivity

IMATRIX = DATA / "imatrix" / "demo-4x512.imatrix.gguf"
MEASURE = {
    "candidates": ["Q8_0", "Q4_K", "Q4_0"],
    "sample_rows": 16,
    "sample_experts": 2,
    "cost_tokens": 64,
    "cost_chunk_tokens": 32,
    "groups": [r"blk\.(\d+)\.ffn_(?:up|down)_exps"],
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("base") / "demo.gguf")


def test_measures_and_goes_on_after_a_kill(base: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "tiny.yaml", measure=MEASURE)
    given = (base, "--imatrix", IMATRIX, "--recipe", recipe, "--out")
    told = facts("measure", *given, tmp_path / "whole.json", "--workers", 1)
    found = Sensitivity.read(tmp_path / "whole.json")
    assert told["tensors"] == len(found.errors) == 32
    groups = [unit.tensors for unit in found.costs if len(unit.tensors) > 1]
    assert groups == [
        (f"blk.{layer}.ffn_down_exps.weight", f"blk.{layer}.ffn_up_exps.weight")
        for layer in (1, 3, 6)
    ]
    assert all(unit.cost(0.01) > 0 for unit in found.costs)
    content = json.loads((tmp_path / "whole.json").read_text())
    assert content["restored_kld"] == 0.0
    assert content["cost_tokens"] == 64

    killed = start("measure", *given, tmp_path / "again.json", "--workers", "1", "--quiet")
    journal = tmp_path / "again.json.work" / "sweep" / "windows.jsonl"
    while not journal.exists() or len(journal.read_text().splitlines()) <= 3:
        assert killed.is_alive()
        time.sleep(0.02)
    killed.kill()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    assert not (tmp_path / "again.json").exists()
    again = printed("measure", *given, tmp_path / "again.json", "--workers", 1)
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()
    assert "most sensitive" in again
    assert not (tmp_path / "again.json.work").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"--imatrix": "missing.gguf"}, "missing.gguf"),
        ({"--out": "MODEL"}, "is an input of this command"),
        ({"--recipe": "no-such"}, "no recipe 'no-such'"),
    ],
)
def test_wrong_input(base: Path, change: dict[str, str], expected: str, tmp_path: Path) -> None:
    given = {"--imatrix": str(IMATRIX), "--out": str(tmp_path / "s.json")} | change
    words = [str(base) if word == "MODEL" else word for pair in given.items() for word in pair]
    assert expected in refused("measure", base, *words, "--workers", 1)
    assert not (tmp_path / "s.json").exists()
