"""Allocation against brute force, and its promises: no budget or GPU exceeded, no fallback."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import flagship
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import STOCK_CANDIDATES
from quantkit.config.target import GPUSpec, Target
from quantkit.core.errors import DoesNotFitError
from quantkit.core.units import GIB
from quantkit.formats.tensors import TensorInfo
from quantkit.llamacpp.presets import Fallback, StockTypes
from quantkit.models.geometry import geometry_of
from quantkit.plan.allocate import Allocation, allocate, allocate_preset
from quantkit.plan.gpu_memory import ComputeBuffers, GPUMemory, gpu_memory, padded_bytes
from quantkit.plan.placement import place
from quantkit.quantize.candidates import admissible, is_quantizable

TYPES = ("Q8_0", "Q5_0", "Q4_0", "IQ4_NL", "MXFP4")
LEVEL = LevelRecipe(name="level")
Costs = dict[str, dict[str, float]]


def matrix(name: str, rows: int, blocks: int) -> TensorInfo:
    return TensorInfo(name, (rows, 32 * blocks), "BF16")


@st.composite
def priced(draw: st.DrawFn, infos: list[TensorInfo]) -> Costs:
    """Costs over up to twelve orders of magnitude, some of them equal, some 0."""
    lowest = draw(st.sampled_from([1e-2, 1e-6, 1e-12]))
    cost = st.one_of(st.floats(lowest, 1.0), st.sampled_from([0.0, 0.25, lowest]))
    return {info.name: {kind: draw(cost) for kind in TYPES} for info in infos}


@st.composite
def budgets(draw: st.DrawFn, infos: list[TensorInfo]) -> int:
    low = sum(min(padded_bytes(i, k) for k in TYPES) for i in infos)
    high = sum(max(padded_bytes(i, k) for k in TYPES) for i in infos)
    return draw(st.integers(low, high + 64))


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TensorInfo], Costs, int]:
    infos = [
        matrix(f"blk.{i}.w.weight", draw(st.integers(1, 40)), draw(st.integers(1, 9)))
        for i in range(draw(st.integers(1, 4)))
    ]
    return infos, draw(priced(infos)), draw(budgets(infos))


def choices_of(infos: list[TensorInfo], costs: Costs) -> list[tuple[float, dict[str, str]]]:
    """Every choice of types there is, with its cost."""
    found = []
    for kinds in itertools.product(TYPES, repeat=len(infos)):
        types = {i.name: k for i, k in zip(infos, kinds, strict=True)}
        found.append((math.fsum(costs[name][kind] for name, kind in types.items()), types))
    return found


def size(infos: list[TensorInfo], types: Mapping[str, str]) -> int:
    return sum(padded_bytes(info, types[info.name]) for info in infos)


def check_against(found: Allocation, costs: Costs, best: float) -> None:
    """The optimum, stated as one, with a bound that does not lie."""
    assert found.cost is not None
    assert found.gap is not None
    assert found.cost == math.fsum(costs[n][k] for n, k in found.types.items())
    assert found.cost <= best * (1 + 1e-9)
    assert found.cost * (1 - found.gap) <= best * (1 + 1e-9)
    assert found.gap <= 1e-6


@given(cases())
@settings(max_examples=60)
def test_equals_brute_force(case: tuple[list[TensorInfo], Costs, int]) -> None:
    infos, costs, budget = case
    found = allocate(infos, costs, budget, 0, LEVEL, gap=1e-9)
    assert found.total_bytes == size(infos, found.types) <= budget
    best = min(c for c, types in choices_of(infos, costs) if size(infos, types) <= budget)
    check_against(found, costs, best)


@given(cases())
@settings(max_examples=60)
def test_what_is_left_helps_no_tensor(case: tuple[list[TensorInfo], Costs, int]) -> None:
    """No type that costs less fits into what is left, nor a larger one that costs the same."""
    infos, costs, budget = case
    found = allocate(infos, costs, budget, 0, LEVEL)
    for info in infos:
        now = found.types[info.name]
        for kind, cost in costs[info.name].items():
            more = padded_bytes(info, kind) - padded_bytes(info, now)
            if cost < costs[info.name][now] or (cost == costs[info.name][now] and more > 0):
                assert found.total_bytes + more > budget


EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"


@st.composite
def gpu_cases(
    draw: st.DrawFn,
) -> tuple[list[TensorInfo], Costs, int, GPUMemory]:
    """Two or three GPUs, three to six layers with the output, tied and untied embeddings."""
    layers = draw(st.integers(3, 6))
    infos = [matrix(EMBEDDING, draw(st.integers(1, 20)), 4)]
    if draw(st.booleans()):
        infos.append(matrix(OUTPUT, draw(st.integers(1, 20)), 4))
    for layer in draw(st.lists(st.integers(0, layers - 2), min_size=1, max_size=3)):
        infos.append(matrix(f"blk.{layer}.w{len(infos)}.weight", draw(st.integers(1, 40)), 4))
    whole = sum(padded_bytes(info, "Q8_0") for info in infos)
    gpus = draw(st.integers(2, 3))
    memory = GPUMemory(
        target=Target(name="t", gpus=(GPUSpec(name="g", memory_gib=1),), context_tokens=1),
        trained_context_tokens=1,
        capacity=tuple(draw(st.integers(0, whole + 300)) for _ in range(gpus)),
        reserve=tuple(draw(st.integers(0, 50)) for _ in range(gpus)),
        context=(*(draw(st.integers(0, 200)) for _ in range(layers - 1)), 0),
        compute=ComputeBuffers(draw(st.integers(0, 100)), draw(st.integers(0, 100))),
    )
    return infos, draw(priced(infos)), draw(budgets(infos)), memory


def gpus_hold(infos: list[TensorInfo], types: Mapping[str, str], memory: GPUMemory) -> bool:
    """By trying every way to cut, with the rules written out once more."""
    layers = len(memory.context)
    load = list(memory.context)
    tied = all(info.name != OUTPUT for info in infos)
    for info in infos:
        if info.name.startswith("blk."):
            load[int(info.name.split(".")[1])] += padded_bytes(info, types[info.name])
        elif info.name == OUTPUT or tied:
            load[-1] += padded_bytes(info, types[info.name])
    load[-1] += memory.compute.output
    for cuts in itertools.combinations_with_replacement(
        range(layers + 1), len(memory.capacity) - 1
    ):
        ends = (0, *cuts, layers)
        if all(
            start == end or sum(load[start:end]) + memory.compute.gpu + reserve <= capacity
            for start, end, capacity, reserve in zip(
                ends, ends[1:], memory.capacity, memory.reserve, strict=False
            )
        ):
            return True
    return False


@given(gpu_cases())
@settings(max_examples=120)
def test_equals_brute_force_on_gpus(
    case: tuple[list[TensorInfo], Costs, int, GPUMemory],
) -> None:
    infos, costs, budget, memory = case
    fitting = [
        cost
        for cost, types in choices_of(infos, costs)
        if size(infos, types) <= budget and gpus_hold(infos, types, memory)
    ]
    if not fitting:
        with pytest.raises(DoesNotFitError, match="no way to cut the layers"):
            allocate(infos, costs, budget, 0, LEVEL, memory)
        return
    found = allocate(infos, costs, budget, 0, LEVEL, memory, gap=1e-9)
    assert found.total_bytes <= budget
    assert gpus_hold(infos, found.types, memory)
    check_against(found, costs, min(fitting))


def flagship_costs(seed: int) -> Costs:
    """As measured ones look: over four orders of magnitude, four times less for each bit more."""
    random = np.random.default_rng(seed)
    costs = {}
    for info in flagship.tensors():
        if is_quantizable(info):
            scale = 10 ** random.uniform(-4, 0)
            costs[info.name] = {
                kind.name: scale * float(random.lognormal(0, 0.08)) * 4.0**-kind.bits_per_weight
                for kind in admissible(info, True, (*STOCK_CANDIDATES, "MXFP4"))
            }
    return costs


def test_the_flagship_uses_its_budget() -> None:
    tensors, budget = flagship.tensors(), 71 * GIB
    found = allocate(tensors, flagship_costs(1), budget, 6 << 20, LEVEL)
    assert found.gap is not None
    assert found.gap <= 1e-5
    assert budget - (1 << 20) < found.total_bytes <= budget
    assert found.types["blk.1.ffn_gate_inp.weight"] == "F32"


def test_the_flagship_on_uneven_gpus_that_bind() -> None:
    tensors, costs = flagship.tensors(), flagship_costs(2)
    geometry = geometry_of(flagship.metadata())
    gpus = tuple(GPUSpec(name=str(gib), memory_gib=gib) for gib in (24, 16, 24, 12))
    target = Target(name="uneven", gpus=gpus, context_tokens=262_144)
    memory = gpu_memory(geometry, target)
    budget = 80 * GIB  # more than the GPUs hold
    found = allocate(tensors, costs, budget, 0, LEVEL, memory)
    assert found.gap is not None
    assert found.gap <= 1e-5
    placement = place(tensors, found.types, memory)
    assert placement.fits
    assert all(gpu.free_bytes < 0.005 * gpu.capacity_bytes for gpu in placement.gpus)
    # lowering the budget until an allocation happens to fit the GPUs costs more
    lower = allocate(tensors, costs, int(0.98 * found.total_bytes), 0, LEVEL)
    assert lower.cost is not None
    assert found.cost is not None
    assert found.cost < lower.cost


INFO = TensorInfo("blk.0.ffn_down_exps.weight", (4, 8, 288), "BF16")
KEPT = TensorInfo("blk.0.attn_norm.weight", (288,), "F32")


def test_too_small_a_budget_says_by_how_much() -> None:
    costs = {INFO.name: {"Q8_0": 0.1, "Q4_0": 0.5}}
    need = padded_bytes(INFO, "Q4_0") + 4 * 288
    assert allocate([INFO, KEPT], costs, need, 0, LEVEL).total_bytes == need
    with pytest.raises(DoesNotFitError, match=r"too small by 0\.00 MiB.*choose a larger target"):
        allocate([INFO, KEPT], costs, need - 1, 0, LEVEL)
    with pytest.raises(DoesNotFitError, match=r"too small by 0\.00 MiB"):
        allocate([INFO, KEPT], costs, need, 1, LEVEL)


def test_tensors_that_were_not_measured_keep_their_type() -> None:
    found = allocate([KEPT, INFO], {INFO.name: {"Q8_0": 0.1}}, 10**6, 0, LEVEL)
    assert found.types[KEPT.name] == "F32"
    assert list(found.types) == [KEPT.name, INFO.name]
    assert allocate([KEPT], {}, 10**6, 0, LEVEL).total_bytes == 4 * 288


def test_row_lengths_that_rule_types_out_are_reported() -> None:
    found = allocate([INFO], {INFO.name: {"Q8_0": 0.1}}, 10**6, 0, LEVEL)
    assert "Q4_K" in found.infeasible[INFO.name]
    assert "Q5_0" not in found.infeasible[INFO.name]


def test_a_preset_costs_what_its_types_cost_where_they_were_measured() -> None:
    costs = {INFO.name: {"Q8_0": 0.1, "Q5_0": 0.25}}
    stock = StockTypes(
        "Q4_K_M", {INFO.name: "Q5_0", KEPT.name: "F32"}, {INFO.name: Fallback("Q4_K", "Q5_0")}
    )
    found = allocate_preset([KEPT, INFO], costs, 10**6, 100, stock)
    assert found.cost == 0.25
    assert found.gap is None
    assert found.total_bytes == 100 + 4 * 288 + padded_bytes(INFO, "Q5_0")
    assert found.stock == stock
    unmeasured = StockTypes("Q4_0", {INFO.name: "Q4_0", KEPT.name: "F32"}, {})
    assert allocate_preset([KEPT, INFO], costs, 10**6, 0, unmeasured).cost is None
