"""Plans of the flagship beside llama.cpp's own numbers, and how long a plan takes."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from make_shape import gguf_tensors, model_config, write_checkpoint
from processes import quantkit, run
from quantkit.plan.fit import place_exactly

from quantkit.config.recipe import MeasureRecipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.units import GIB
from quantkit.models.families.registry import family_for
from quantkit.models.model import Model
from quantkit.plan.alternatives import largest_level
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.placement import Placement
from quantkit.plan.plan import Entry
from quantkit.plan.verify import Verification, verify

CONFIG = model_config("nemotron-3-super", mtp=False)
CARDS = {"4 × 24 GiB": (24.0,) * 4, "48 + 24 + 24 + 16 GiB": (48.0, 24.0, 24.0, 16.0)}
CONTEXT = 516_096
RUNS = 5


def plan_lines(folder: Path) -> list[str]:
    """Seconds of a plan; then its numbers against RPC servers, and what those do not need."""
    whole = write_checkpoint(folder / "super", model_config("nemotron-3-super"))
    options = ("plan", "--target", "4x3090", "--model", whole, "--levels", "71GiB", "--json")
    seconds = statistics.median(run(quantkit(*options)).seconds for _ in range(RUNS))
    lines = [
        f"Planning 71 GiB of the flagship's shape for 4x3090, from a folder: {seconds:.1f} s, with "
        "the demo's tokenizer.",
        "",
        f"The plan at {CONTEXT:,} tokens beside what llama.cpp takes on RPC servers in place "
        "of the GPUs: the largest difference of any GPU. The last column is what flash "
        "attention's F16 copies of a quantized KV cache add on CUDA, which servers on a CPU do "
        "not need.",
        "",
        "| GPUs | KV | batch | weights | context | compute | fullest GPU | CUDA needs more |",
        "|---|---|---|---|---|---|---|---|",
    ]
    model = _model()
    for name, sizes in CARDS.items():
        for kv_type in ("f16", "q8_0"):
            for batch in (512, 2048):
                specs = tuple(GPUSpec(name="gpu", memory_gib=size) for size in sizes)
                target = Target(
                    name=name,
                    gpus=specs,
                    context_tokens=CONTEXT,
                    kv_type=kv_type,
                    ubatch_tokens=batch,
                )
                lines.append(_row(model, target))
    return [*lines, "", *_inputs_lines(model)]


def _inputs_lines(model: Model) -> list[str]:
    """What copies of the attention mask cost: the largest artifact with fewer or smaller ones."""
    target = load_target("4x3090")
    ways = {
        "batches of 512": target,
        "batches of 256": target.changed(ubatch_tokens=256),
        "batches of 512, no pipeline": target.changed(pipeline=False),
    }
    costs = nominal_costs(model, MeasureRecipe())
    memories, _ = gpu_memories(model, [*ways.values()])
    sizes = []
    for name, memory in zip(ways, memories, strict=True):
        found = largest_level(model, costs, memory)
        sizes.append(f"{name} {found.total_bytes / GIB:.1f} GiB" if found else f"{name} nothing")
    return [
        f"The largest artifact of that shape on 4x3090 at {CONTEXT:,} tokens: {', '.join(sizes)}."
    ]


def _model() -> Model:
    metadata = family_for(CONFIG).metadata(CONFIG)
    return Model("super", metadata, gguf_tensors(CONFIG))


def _row(model: Model, target: Target) -> str:
    costs = nominal_costs(model, MeasureRecipe())
    (memory,), _ = gpu_memories(model, [target])
    largest = largest_level(model, costs, memory)
    if largest is None:
        return f"| {target.name} | {target.kv_type} | {target.ubatch_tokens} | nothing fits |"
    placement = place_exactly(model, largest.types, memory)
    launch = Launch(placement, "m.gguf", "m", "nemotron_h_moe", CONTEXT)
    entry = Entry("max", model, largest.types, 0, launch)
    with _rpc_build():
        found = verify(entry, target, "rpc")
    worst = {
        part: max(one.difference for one in found.compared if one.part == part)
        for part in ("weights", "context", "compute")
    }
    used = max(gpu.total_bytes - gpu.reserve_bytes for gpu in placement.gpus)
    return (
        f"| {target.name} | {target.kv_type} | {target.ubatch_tokens} | "
        + " | ".join(f"{worst[part]:.3%}" for part in worst)
        + f" | {used / GIB:.2f} GiB | {_more_on_cuda(placement, found) / (1 << 20):.0f} MiB |"
    )


def _more_on_cuda(placement: Placement, found: Verification) -> int:
    on_servers = [one.found for one in found.compared if one.part == "compute"]
    pairs = zip(placement.gpus, on_servers, strict=True)
    return max(gpu.compute_bytes - server for gpu, server in pairs)


@contextmanager
def _rpc_build() -> Iterator[None]:
    """With the libraries that `make oracle-tools` builds: they have RPC."""
    os.environ["LLAMA_CPP_LIB_PATH"] = os.environ["QUANTKIT_LLAMA_TOOLS"]
    try:
        yield
    finally:
        del os.environ["LLAMA_CPP_LIB_PATH"]
