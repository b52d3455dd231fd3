"""Allocation at the flagship's shape: CPU seconds and proven gap, with and without GPUs that bind.

The costs are made up as measured ones look: each bit more divides an error by about four, a type's
own quality differs by some ten percent from tensor to tensor, and what an error costs the model
spans four orders of magnitude.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from make_shape import gguf_tensors, model_config
from quantkit.study.candidates import admissible, is_quantizable

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.config.target import GPUSpec, Target
from quantkit.core.units import GIB
from quantkit.formats.tensors import TensorInfo
from quantkit.models.families.registry import family_for
from quantkit.models.geometry import geometry_of
from quantkit.plan.allocate import Allocation, allocate
from quantkit.plan.gpu_memory import EMBEDDING, GPUMemory, gpu_memory, padded_bytes
from quantkit.plan.level_plans import target_budget

CONFIG = model_config("nemotron-3-super", mtp=False)
TYPES = (*STOCK_CANDIDATES, "NVFP4")
BUDGETS_GIB = (45, 56, 70.6, 93)
SEEDS = (1, 2, 3)
ORDERS = 4.0
NOISE = 0.08
# name, GiB of each GPU, context: what these leave for weights is less than Q8_0 takes
GPU_SETS = (
    ("4 × 20 GiB", (20, 20, 20, 20), 516_096),
    ("24 + 16 + 24 + 12 GiB", (24, 16, 24, 12), 262_144),
    ("2 × 12 + 2 × 16 + 2 × 8 GiB", (12, 12, 16, 16, 8, 8), 131_072),
    ("8 × 12 GiB", (12,) * 8, 262_144),
    ("16 × 6 GiB", (6,) * 16, 131_072),
)
LEVEL = LevelRecipe(name="all")


def made_up_costs(tensors: list[TensorInfo], seed: int) -> dict[str, dict[str, float]]:
    """Costs of every quantizable tensor at every type that its rows fit."""
    random = np.random.default_rng(seed)
    costs = {}
    for info in tensors:
        if is_quantizable(info):
            scale = 10 ** random.uniform(-ORDERS, 0)
            costs[info.name] = {
                kind.name: scale * float(random.lognormal(0, NOISE)) * 4.0**-kind.bits_per_weight
                for kind in admissible(info, True, TYPES)
            }
    return costs


@dataclass(frozen=True)
class Case:
    """One allocation."""

    tensors: list[TensorInfo]
    costs: Mapping[str, Mapping[str, float]]
    budget_bytes: int
    memory: GPUMemory | None

    def run(self) -> Allocation:
        return allocate(self.tensors, self.costs, self.budget_bytes, 0, LEVEL, self.memory)


def allocation_lines() -> list[str]:
    """A row for each budget and each GPU set, over SEEDS."""
    tensors = gguf_tensors(CONFIG)
    geometry = geometry_of(family_for(CONFIG).metadata(CONFIG))
    sets = [made_up_costs(tensors, seed) for seed in SEEDS]
    pairs = sum(map(len, sets[0].values()))
    lines = [
        f"{len(sets[0])} tensors, {pairs:,} (tensor, type) pairs, made-up costs over {ORDERS:g} "
        f"orders of magnitude, {len(SEEDS)} sets of them. The gap is the proven distance to the "
        "optimum.",
        "",
        "| limits | CPU seconds, median | longest | largest gap | most left of the budget |",
        "|---|---|---|---|---|",
    ]
    for gib in BUDGETS_GIB:
        lines.append(_row(f"{gib:g} GiB", [Case(tensors, c, int(gib * GIB), None) for c in sets]))
    host = max(padded_bytes(i, "Q8_0") for i in tensors if i.name == EMBEDDING)
    for name, sizes, context in GPU_SETS:
        specs = tuple(GPUSpec(name="gpu", memory_gib=size) for size in sizes)
        target = Target(name=name, gpus=specs, context_tokens=context)
        memory = gpu_memory(geometry, target)
        budget = target_budget(memory, host)
        lines.append(_row(name, [Case(tensors, c, budget, memory) for c in sets]))
        less = int(0.98 * budget)
        lines.append(_row(f"{name} and 2 % less", [Case(tensors, c, less, memory) for c in sets]))
    return lines


def _row(name: str, cases: list[Case]) -> str:
    seconds, gaps, left = [], [], []
    for case in cases:
        began = time.process_time()
        found = case.run()
        seconds.append(time.process_time() - began)
        gaps.append(found.gap or 0.0)
        left.append(1 - found.total_bytes / case.budget_bytes)
    return (
        f"| {name} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | {max(gaps):.0e} | "
        f"{max(left):.4%} |"
    )


if __name__ == "__main__":
    print("\n".join(allocation_lines()))
