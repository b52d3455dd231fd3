"""HF → GGUF: quantkit against llama.cpp's own converter, on the same checkpoint, one after another.

The model has the flagship's layers at true width, with fewer of them, fewer experts and a smaller
vocabulary, and random numbers in BF16. Both programs are timed as whole processes, their start
included; quantkit also waits until its file is on the disk.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path

from make_shape import model_config, write_checkpoint
from processes import Run, quantkit, run

RUNS = 3
CONVERTER = Path(__file__).parents[1] / "tests" / "models" / "families" / "oracle_convert.py"


def conversion_table(folder: Path, workers: int) -> list[str]:
    """Throughput and peak memory of both, for BF16 and for Q8_0."""
    config = model_config("nemotron-3-super", layers="ME*E", experts=64, mtp=False)
    model = write_checkpoint(folder / "model", config | {"vocab_size": 16384}, fill="random")
    size = sum(path.stat().st_size for path in model.glob("*.safetensors"))
    lines = [
        f"Checkpoint of {size / 1e9:.2f} GB (layers ME*E of Nemotron-3-Super, 64 experts), "
        f"{workers} workers, medians of {RUNS} runs in turn.",
        "",
        "| to | llama.cpp's converter | quantkit | speed | memory |",
        "|---|---|---|---|---|",
    ]
    for kind in ("BF16", "Q8_0"):
        theirs, ours = _in_turn(model, folder / "out.gguf", kind, workers)
        lines.append(
            f"| {kind} | {_words(theirs, size)} | {_words(ours, size)} "
            f"| {theirs.seconds / ours.seconds:.1f} × faster "
            f"| {ours.peak_bytes / theirs.peak_bytes:.2f} of theirs |"
        )
    return lines


def _in_turn(model: Path, out: Path, kind: str, workers: int) -> tuple[Run, Run]:
    theirs = [
        os.environ["QUANTKIT_TORCH_PYTHON"], CONVERTER, os.environ["QUANTKIT_LLAMA_CPP"],
        model, out, "tekken", "--no-mtp", "--outtype", kind.lower(),
    ]  # fmt: skip
    options = ("--out", out, "--type", kind, "--workers", str(workers), "--quiet")
    ours = quantkit("convert", "--model", model, *options)
    runs: tuple[list[Run], list[Run]] = ([], [])
    for _ in range(RUNS):
        for command, found in zip((theirs, ours), runs, strict=True):
            out.unlink(missing_ok=True)
            found.append(run(command))
            print(f"{kind}: {found[-1]}", file=sys.stderr)
    out.unlink()
    return _median(runs[0]), _median(runs[1])


def _median(runs: list[Run]) -> Run:
    return Run(
        statistics.median(r.seconds for r in runs),
        int(statistics.median(r.peak_bytes for r in runs)),
    )


def _words(found: Run, size: int) -> str:
    return (
        f"{size / found.seconds / 1e6:,.0f} MB/s, {found.seconds:.1f} s, "
        f"{found.peak_bytes / 1e6:,.0f} MB"
    )
