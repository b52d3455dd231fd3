"""What `make bench` runs; writes benchmarks/results.md.

Conversion against llama.cpp's, the flagship's shape, the importance matrix, the demo model in
llama.cpp, and kernels.

Timings are the median of several runs in one go; compare ratios, not machines.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from collection import collection_lines
from conversion import conversion_table
from importance import importance_table
from scale import scale_lines

from quantkit.machine import describe_machine
from quantkit.models import choose_model, open_source
from quantkit.native import kernels
from quantkit.native.llama import Context, Model
from quantkit.native.selftest import working_settings
from quantkit.native.settings import ContextSettings, DeviceSettings
from quantkit.progress import SILENT
from quantkit.quant_types import quant_type
from quantkit.recipe import STOCK_CANDIDATES, ConvertRecipe
from quantkit.stages.convert import convert

HERE = Path(__file__).parent
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


def fork_ratio(base: Path, devices: DeviceSettings, length: int = 8192, needles: int = 64) -> str:
    """What one prefill for all needles saves against one for each, worked out from one of each."""
    model = Model(base, devices)
    sizes = ContextSettings(length + 512, batch_tokens=512, sequences=2, kv_type="q8_0")
    context = Context(model, sizes)
    random = np.random.default_rng(3)
    prefix = random.integers(5, 2000, length, dtype=np.int32)
    tail = random.integers(5, 2000, 40, dtype=np.int32)
    began = time.perf_counter()
    context.decode(prefix, 0)
    prefill = time.perf_counter() - began

    def question() -> None:
        context.fork(0, 1)
        context.decode(tail, length, sequence=1)
        context.drop(1)

    asked = median_seconds(question)
    shared, classic = prefill + needles * asked, needles * (prefill + asked)
    return (
        f"- {needles} needles at {length:,} tokens: one prefill and {needles} forks take "
        f"{shared / classic:.3f} of the time of {needles} prefills (prefill {prefill:.2f} s, "
        f"question {asked * 1e3:.0f} ms)"
    )


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


def main() -> None:
    facts = describe_machine()
    devices = DeviceSettings(int(facts["cpu_cores"]), working_settings().use_extra_buffers, 0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.gguf"
        source = open_source(choose_model("demo"))
        convert(source, ConvertRecipe(), base, Path(folder), devices.threads, SILENT)
        workers = devices.threads
        lines = [
            "# Benchmarks",
            "",
            "Written by `make bench`. Machine: "
            f"{facts['cpu_cores']} cores of {platform.machine()}, {facts['memory']}; "
            f"quantkit {facts['quantkit']}, llama-cpp-python {facts['llama_cpp_python']}, "
            f"Python {facts['python']}. Medians of {RUNS} runs.",
            "",
            "## HF checkpoint → GGUF",
            "",
            *conversion_table(Path(folder), workers),
            "",
            "## Nemotron-3-Super's shape, without its weights",
            "",
            *scale_lines(Path(folder), workers),
            "",
            "## What the importance matrix is worth",
            "",
            *importance_table(Path(folder), devices),
            "",
            "## Demo model in llama.cpp",
            "",
            *collection_lines(base, devices),
            fork_ratio(base, devices),
            kv_ratio(base, devices),
            "",
            "## Kernels, one core, with an importance matrix",
            "",
            *kernel_table(),
            "",
        ]
    text = "\n".join(lines)
    (HERE / "results.md").write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
