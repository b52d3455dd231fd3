"""Finished builds of the demo model, and what may have happened to one before it is published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from forked import quantkit
from small_recipes import write_recipe

from quantkit.core.files import write_json
from quantkit.core.progress import SILENT
from quantkit.core.receipts import read_receipt, write_receipt
from quantkit.formats.gguf_writer import lay_out
from quantkit.models.gguf_source import GGUFSource
from quantkit.quantize.encode import write_shards

GATE = {
    "context_tokens": [384], "needles": 4, "answer_tokens": 8, "minimum_lower_bound": 0.4,
}  # fmt: skip
LEVELS = [
    {"name": "Q8", "bits_per_weight": 8.6},
    {"name": "Q4", "bits_per_weight": 4.6},
    {"name": "Q4_0", "preset": "Q4_0", "baseline": True},
]


def build(folder: Path) -> Path:
    """A build whose levels Q8 and Q4 passed their gate, and whose Q4_0 is a baseline."""
    recipe = write_recipe(
        folder / "tiny.yaml",
        levels=LEVELS,
        retrieval=GATE,
        measure={"candidates": ["Q8_0", "Q4_0", "Q2_K"], "sample_rows": 16, "cost_tokens": 0},
    )
    out = folder / "out"
    done = quantkit(
        "build", "--target", "4x3090", "--model", "demo", "--recipe", recipe, "--out", out
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def copied(build: Path, to: Path) -> Path:
    """A build of one's own, to be changed; receipts compare times of change too."""
    shutil.copytree(build, to, ignore=shutil.ignore_patterns("release"))
    return to


def rewrite(build: Path, stage: str, outputs: list[Path] | None = None) -> None:
    """Make the receipt of `stage`, and those that refer to it, fit what lies in the folder."""
    receipt = read_receipt(build, stage)
    assert receipt is not None
    paths = outputs or [build / output.path for output in receipt.outputs]
    new = write_receipt(build, stage, receipt.parts, paths, receipt.seconds, receipt.facts)
    for path in (build / "receipts").glob("*.json"):
        content = json.loads(path.read_text())
        if stage in content["parts"]:
            content["parts"][stage] = new.output_hashes
            write_json(path, content)
            rewrite(build, content["stage"])


def change_json(path: Path, change: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def flip(path: Path) -> None:
    """Change one byte, of JSON in a hash, and neither size nor time of change."""
    stat, data = path.stat(), bytearray(path.read_bytes())
    data[data.rfind(b'"sha256": "') + 12 if path.suffix == ".json" else -100] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def fail(build: Path, level: str) -> None:
    """What a level leaves that missed its needles."""

    def miss(content: Any) -> None:  # noqa: ANN401
        content["passed"] = False
        for score in content["niah"]["scores"]:
            score |= {"hits": 1, "lower_bound": 0.0127, "upper_bound": 0.7514}

    folder = build / "levels" / level
    change_json(folder / "validation.json", miss)
    lines = [json.loads(line) for line in (folder / "niah.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line |= {"hit": False, "found": 0, "answer": "I do not know."}
    (folder / "niah.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rewrite(build, f"validate:{level}")


def divide(build: Path, level: str, most_bytes: int = 3_000_000) -> list[Path]:
    """Make shards of a level's file, as of one of more than 50 GB."""
    receipt = read_receipt(build, f"quantize:{level}")
    assert receipt is not None
    path = build / receipt.outputs[0].path
    source = GGUFSource(path)
    layouts = lay_out(path.stem, source.metadata, source.tensors, most_bytes)
    assert len(layouts) > 1
    work = build / "dividing"
    work.mkdir()
    shards = write_shards(path.parent, work, layouts, source, {}, SILENT, 1)
    shutil.rmtree(work)
    path.unlink()
    rewrite(build, f"quantize:{level}", shards)
    return shards
