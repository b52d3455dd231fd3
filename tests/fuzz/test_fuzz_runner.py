"""`scripts/fuzz.py` itself, on readers that are broken in each way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BROKEN = """
import ctypes
from fuzz_inputs import as_json, bytewise
from fuzz_target import Target
from quantkit.core.errors import InputError
KEPT = []

def refusing(data): raise InputError("no")
def raising(data):
    if data != b"seed": {}["key"]
def looping(data):
    while data != b"seed": pass
def growing(data):
    if data != b"seed": KEPT.append(b"x" * (30 << 20))
def allocating(data):
    if data != b"seed": bytes(1 << 40)
def hiding(data):
    try: allocating(data)
    except MemoryError: raise InputError("it is too large") from None
def crashing(data):
    if data != b"seed": ctypes.string_at(0)
def warning(data):
    if data != b"seed": import warnings; warnings.warn("x", RuntimeWarning)

TARGETS = {
    read.__name__: lambda folder, read=read: Target(read, (b"seed",), bytewise)
    for read in (refusing, raising, looping, growing, allocating, hiding, crashing, warning)
}
"""
FAULTS = {
    "refusing": None, "raising": "traceback", "looping": "hang", "growing": "memory",
    "allocating": "memory", "hiding": "memory", "crashing": "crash", "warning": "traceback",
}  # fmt: skip


def fuzzed(folder: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit status, the JSON and what was printed."""
    (folder / "broken.py").write_text(BROKEN)
    places = [folder, *(ROOT / name for name in ("scripts", "tests/support", "tests/fuzz", ""))]
    done = subprocess.run(
        [
            sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--targets", "broken",
            "--out", str(folder / "out"), "--processes", "2", *words,
        ],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (folder / "out" / "fuzz.json").exists(), done.stderr
    facts = json.loads((folder / "out" / "fuzz.json").read_text())
    return done.returncode, {row["target"]: row for row in facts["targets"]}, done.stdout


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    folder = tmp_path_factory.mktemp("broken")
    words = ("--inputs", "20", "--hang-seconds", "1", "--memory-mb", "100")
    status, rows, printed = fuzzed(folder, *words)
    assert status == 1
    return folder / "out", rows, printed


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_recorded(name: str, broken: tuple[Path, dict[str, Any], str]) -> None:
    out, rows, printed = broken
    kind, row = FAULTS[name], rows[name]
    assert {k for k, count in row["faults"].items() if count} == ({kind} if kind else set())
    assert name in printed
    assert row["inputs"] >= (20 if kind in (None, "traceback") else 0)
    if kind is not None:
        saved, *_ = out.glob(f"{name}.{kind}.*.input")
        assert saved.read_bytes() != b"seed"


def test_all_is_well(tmp_path: Path) -> None:
    words = ("--only", "refusing", "--inputs", "300", "--engine", "hypothesis")
    status, rows, _ = fuzzed(tmp_path, *words)
    assert status == 0
    assert rows["refusing"]["inputs"] == 300


def test_a_seed_gives_the_same_inputs(tmp_path: Path) -> None:
    said = []
    for number in ("1", "1", "2"):
        words = ("--only", "raising", "--inputs", "30", "--engine", "hypothesis", "--seed", number)
        fuzzed(tmp_path, *words)
        (saved,) = (tmp_path / "out").glob("raising.traceback.*.input")
        said.append(saved.read_bytes())
    assert said[0] == said[1] != said[2]
