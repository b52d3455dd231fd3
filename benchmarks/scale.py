"""The flagship at true size, without its weights: what opening, planning and converting cost.

The files are sparse, so numbers are about our own work and memory, not about a disk.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from make_shape import (
    checkpoint_tensors,
    gguf_tensors,
    model_config,
    stored_bytes,
    write_checkpoint,
)
from processes import quantkit, run

from quantkit.formats.gguf_writer import tensor_size_bytes

# Opens a checkpoint and quantizes it to a mixture; each layer's types are those of a Q4_K file.
_QUANTIZE = """
import sys
from pathlib import Path
from make_shape import with_types
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.model import Model
from quantkit.quantize.quantize import quantize
source = open_checkpoint(Path(sys.argv[1]))
types = {info.name: info.type_name for info in with_types(source.tensors, "Q4_K")}
out = Path(sys.argv[2])
quantize(source, Model.of("m", source), types, {}, out, out, int(sys.argv[3]))
"""
KINDS = {"M": "Mamba-2", "*": "attention", "E": "LatentMoE, 512 experts"}


def scale_lines(folder: Path, workers: int) -> list[str]:
    """Planning the whole checkpoint; converting and quantizing one layer of each kind."""
    config = model_config("nemotron-3-super")
    whole = write_checkpoint(folder / "NVIDIA-Nemotron-3-Super-120B-A12B-BF16", config)
    tensors = checkpoint_tensors(config)
    size = sum(map(stored_bytes, tensors.values()))
    planned = run(quantkit("plan", "--target", "4x3090", "--model", whole, "--json"))
    shutil.rmtree(whole)
    lines = [
        f"- opening the checkpoint ({size / 1e9:.0f} GB, {len(tensors):,} tensors), listing its "
        f"tensors and planning it for 4x3090: {planned.seconds:.1f} s, peak memory "
        f"{planned.peak_bytes / 1e6:.0f} MB",
        "",
        f"One layer at true size with embedding and output matrix, {workers} workers:",
        "",
        "| layer | checkpoint | largest tensor | to BF16 | to a Q4_K mixture |",
        "|---|---|---|---|---|",
    ]
    for letter, kind in KINDS.items():
        lines.append(_layer_row(folder, letter, kind, workers))
    return lines


def _layer_row(folder: Path, letter: str, kind: str, workers: int) -> str:
    config = model_config("nemotron-3-super", layers=letter, mtp=False)
    model = write_checkpoint(folder / f"layer{ord(letter)}", config)
    size = sum(map(stored_bytes, checkpoint_tensors(config).values()))
    largest = max(tensor_size_bytes(info) for info in gguf_tensors(config))
    out = folder / "out.gguf"
    options = ("--out", out, "--workers", str(workers), "--quiet")
    converted = run(quantkit("convert", "--model", model, *options))
    out.unlink()
    work = folder / "quantized"
    work.mkdir()
    quantized = run([sys.executable, "-P", "-c", _QUANTIZE, model, work, str(workers)])
    shutil.rmtree(work)
    shutil.rmtree(model)
    costs = (f"{r.seconds:.1f} s, {r.peak_bytes / 1e6:.0f} MB" for r in (converted, quantized))
    return f"| {kind} | {size / 1e9:.1f} GB | {largest / 1e9:.1f} GB | {' | '.join(costs)} |"
