"""What `make bench` runs; writes benchmarks/results.md.

Each section stands for itself: `make bench ONLY="quantizing kernels"` runs those whose titles have
one of the words, and leaves the others as they are.

Timings are the median of several runs in one go; compare ratios, not machines.
"""

from __future__ import annotations

import functools
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from allocation import allocation_lines
from best_bits import best_bits_table
from collection import collection_lines
from conversion import conversion_table
from importance import importance_table
from plans import plan_lines
from prepared import Prepared, prepare
from quantization import quantization_table
from retrieval import retrieval_lines
from scale import scale_lines

from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.core.progress import SILENT
from quantkit.formats.tensor_types import quant_type
from quantkit.llamacpp.llama import Context, Model
from quantkit.llamacpp.selftest import working_settings
from quantkit.llamacpp.settings import ContextSettings, DeviceSettings
from quantkit.models.choose import choose_model, open_source
from quantkit.plan.machine import describe_machine
from quantkit.quantize import kernels
from quantkit.quantize.quantize import convert

RESULTS = Path(__file__).with_name("results.md")
RUNS = 5
ROWS = np.random.default_rng(1).standard_normal((256, 2048), np.float32)


def median_seconds(work: Callable[[], object]) -> float:
    """Median wall time of RUNS runs after one that is not counted."""
    work()
    times = []
    for _ in range(RUNS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def kernel_table() -> list[str]:
    """Million parameters a second of each type, one core, with an importance matrix."""
    lines = ["| type | bits a weight | M parameters/s |", "|---|---|---|"]
    importance = np.ones(ROWS.shape[1], np.float32)
    for name in STOCK_CANDIDATES:
        kind = quant_type(name)
        seconds = median_seconds(lambda k=kind: kernels.quantize(k, ROWS, importance))
        lines.append(f"| {name} | {kind.bits_per_weight:g} | {ROWS.size / seconds / 1e6:.1f} |")
    return lines


def kv_ratio(base: Path, devices: DeviceSettings, length: int = 8192) -> str:
    """Prefill over a q8_0 cache against one over an f16 cache."""
    model = Model(base, devices)
    tokens = np.random.default_rng(3).integers(5, 2000, length, dtype=np.int32)
    seconds = {}
    for kv_type in ("f16", "q8_0"):
        context = Context(model, ContextSettings(length, batch_tokens=512, kv_type=kv_type))

        def work(c: Context = context) -> None:
            c.clear()
            c.decode(tokens, 0)

        seconds[kv_type] = median_seconds(work)
        context.close()
    return (
        f"- prefill of {length:,} tokens: a q8_0 KV cache takes "
        f"{seconds['q8_0'] / seconds['f16']:.1f} times as long as an f16 one"
    )


@dataclass(frozen=True)
class Bench:
    """Where sections work, and what several of them need."""

    folder: Path
    devices: DeviceSettings

    @functools.cached_property
    def models(self) -> list[Prepared]:
        """Measured once for all sections, which takes minutes."""
        return prepare(self.folder, self.devices)


def demo_lines(bench: Bench) -> list[str]:
    """Collecting and prefill on the demo model."""
    base, devices = bench.folder / "base.gguf", bench.devices
    source = open_source(choose_model("demo"))
    convert(source, "source", base, bench.folder, devices.threads, SILENT)
    return [*collection_lines(base, devices), kv_ratio(base, devices)]


def best_bits_lines(bench: Bench) -> list[str]:
    """The real language model, then the demo with its retrieval."""
    demo, smol = bench.models
    return [
        *best_bits_table(smol, retrieval=False), "", *best_bits_table(demo, retrieval=True),
    ]  # fmt: skip


SECTIONS: dict[str, Callable[[Bench], list[str]]] = {
    "HF checkpoint → GGUF": lambda b: conversion_table(b.folder, b.devices.threads),
    "Nemotron-3-Super's shape, without its weights": lambda b: scale_lines(
        b.folder, b.devices.threads
    ),
    "Plans and llama.cpp's own numbers": lambda b: plan_lines(b.folder),
    "Allocation at that shape": lambda _: allocation_lines(),
    "Best bits for the bytes": best_bits_lines,
    "What the importance matrix is worth": lambda b: importance_table(b.models),
    "Quantizing": lambda b: quantization_table(b.folder, b.devices),
    "Retrieval in one pass": lambda b: retrieval_lines(b.folder, b.devices),
    "Demo model in llama.cpp": demo_lines,
    "Kernels, one core, with an importance matrix": lambda _: kernel_table(),
}


def kept_sections() -> dict[str, str]:
    """Sections of the last results, by title."""
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    parts = text.split("\n## ")[1:]
    return {title: body for title, _, body in (part.partition("\n") for part in parts)}


def main(words: Sequence[str]) -> None:
    """Run the sections that `words` name, all without any; results.md is written after each."""
    chosen = [t for t in SECTIONS if not words or any(w.lower() in t.lower() for w in words)]
    if not chosen:
        sys.exit(f"no section has {' or '.join(words)} in its title: {'; '.join(SECTIONS)}")
    facts = describe_machine()
    head = (
        f"# Benchmarks\n\nWritten by `make bench`. Machine: {facts['cpu_cores']} cores of "
        f"{platform.machine()}, {facts['memory']}; quantkit {facts['quantkit']}, "
        f"llama-cpp-python {facts['llama_cpp_python']}, Python {facts['python']}. Medians of "
        f"{RUNS} runs where nothing else is said.\n"
    )
    found = kept_sections()
    devices = DeviceSettings(int(facts["cpu_cores"]), working_settings().use_extra_buffers, 0)
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), devices)
        for title in chosen:
            found[title] = "\n".join(["", *SECTIONS[title](bench), ""])
            print(f"## {title}\n{found[title]}", flush=True)
            body = "".join(f"\n## {t}\n{found[t].rstrip()}\n" for t in SECTIONS if t in found)
            RESULTS.write_text(head + body, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
