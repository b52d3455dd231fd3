"""Plans held against llama.cpp: the flagship on GPUs of every kind, and models of each family."""

from __future__ import annotations

from dataclasses import replace

import flagship
import pytest

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import MeasureRecipe, Recipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.units import GIB
from quantkit.llamacpp.memory_plan import ask_memory
from quantkit.models.geometry import geometry_of
from quantkit.plan.allowed_types import smallest_types
from quantkit.plan.alternatives import LARGEST, largest_level
from quantkit.plan.fit import place_exactly
from quantkit.plan.gpu_memory import gpu_memory, padded_bytes
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.llama_memory import asked_memories
from quantkit.plan.model import PlannedModel
from quantkit.plan.place import place
from quantkit.plan.plan import Entry, plan_recipe
from quantkit.plan.verify import Compared, Verification, verify, where_of

MODEL = PlannedModel(
    "super", flagship.metadata(), flagship.tensors(), geometry_of(flagship.metadata())
)
COSTS = nominal_costs(MODEL, MeasureRecipe())
EVEN = (24.0, 24.0, 24.0, 24.0)
UNEVEN = (40.0, 24.0, 24.0, 16.0)


def uniform(*kinds: str) -> dict[str, str]:
    """The first of `kinds` that a tensor's rows divide into; F32 stays."""
    found = {}
    for info in flagship.tensors():
        fitting = [kind for kind in kinds if kind in COSTS.get(info.name, {})]
        found[info.name] = fitting[0] if fitting else info.type_name
    return found


ALLOCATIONS = {
    "Q4_K and Q5_0": lambda: uniform("Q4_K", "Q5_0", "Q8_0"),
    "IQ4_NL": lambda: uniform("IQ4_NL", "Q8_0"),
    "smallest": lambda: smallest_types(flagship.tensors(), COSTS, LARGEST),
    "mixed": lambda: mixed(),
}


def mixed() -> dict[str, str]:
    target = load_target("4x3090")
    found = largest_level(MODEL, COSTS, target, gpu_memory(MODEL.geometry, target))
    assert found is not None
    return dict(found.types)


@pytest.mark.parametrize("name", ALLOCATIONS)
@pytest.mark.parametrize("gib", [EVEN, UNEVEN], ids=["even", "uneven"])
def test_a_plan_of_the_flagship_is_what_llama_cpp_takes(name: str, gib: tuple[float, ...]) -> None:
    """At 516,096 tokens, F16 and Q8_0 KV, batches of 512 and 2048, wherever the layers lie."""
    types = ALLOCATIONS[name]()
    # as much as the weights need, and 12 GiB for batches of 2048: so every GPU is needed
    need = sum(padded_bytes(info, types[info.name]) for info in flagship.tensors()) / GIB
    sizes = [1.1 * need * size / sum(gib) + 12 for size in gib]
    gpus = tuple(GPUSpec(name=f"{size:.1f} GiB", memory_gib=size) for size in sizes)
    first = Target(name="t", gpus=gpus, context_tokens=516_096)
    targets = [
        first.changed(kv_type=kv, ubatch_tokens=batch)
        for kv in ("f16", "q8_0")
        for batch in (512, 2048)
    ]
    memories, why = asked_memories(MODEL.metadata, MODEL.tensors, MODEL.geometry, targets)
    assert why is None
    for target, memory in zip(targets, memories, strict=True):
        expected = place(MODEL.tensors, types, memory, target)
        assert expected.fits
        placement = place_exactly(MODEL, types, target, memory)
        assert placement.tensor_split == expected.tensor_split
        entry = Entry(name, MODEL, types, 0, placement, "m.gguf", 1_048_576)
        found = verify(entry, target, "stand-ins")
        assert found.agrees
        assert len(found.compared) == 12
        for gpu, planned in enumerate(expected.gpus):
            weights, context, compute = found.compared[3 * gpu : 3 * gpu + 3]
            assert planned.weights_bytes == pytest.approx(weights.found, rel=1e-4)
            assert planned.context_bytes == pytest.approx(context.found, rel=1e-4)
            # before the cut was known: never too little, and at most 5 % too much
            assert 0.999 * compute.found < planned.compute_bytes < 1.05 * compute.found


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("batch", [512, 2048])
def test_estimates_are_close_where_llama_cpp_cannot_be_asked(kv: str, batch: int) -> None:
    target = load_target("4x3090").changed(kv_type=kv, ubatch_tokens=batch)
    (asked,), _ = asked_memories(MODEL.metadata, MODEL.tensors, MODEL.geometry, [target])
    estimated = gpu_memory(MODEL.geometry, target)
    assert estimated.compute.estimated
    assert not asked.compute.estimated
    assert estimated.compute.gpu == pytest.approx(asked.compute.gpu, rel=0.05)
    assert estimated.compute.host == pytest.approx(asked.compute.host, rel=0.05)


def test_the_published_run() -> None:
    """71 GiB on four RTX 3090 at 504K: 20 to 21 GiB a GPU, confirmed by llama.cpp."""
    recipe = Recipe(name="r", levels=(LevelRecipe(name="all", size="71 GiB"),))
    target = load_target("4x3090")
    sheet = plan_recipe(recipe, target, MODEL, 1_048_576)
    (entry,) = sheet.entries
    assert 0.99 * 71 * GIB < entry.total_bytes <= 71 * GIB
    for gpu in entry.placement.gpus:
        assert 19.5 * GIB < gpu.total_bytes - gpu.reserve_bytes < 21.5 * GIB
    found = verify(entry, target, "stand-ins")
    assert found.agrees
    assert found.fits


def test_the_largest_level_at_a_million_tokens() -> None:
    recipe = Recipe(name="r", levels=(LevelRecipe(name="max"),))
    target = load_target("4x3090").changed(context_tokens=1 << 20, weight_budget_gib="auto")
    (entry,) = plan_recipe(recipe, target, MODEL, 1 << 20).entries
    assert verify(entry, target, "stand-ins").fits
    assert 60 * GIB < entry.total_bytes < 71 * GIB
    free = [gpu.free_bytes for gpu in entry.placement.gpus]
    assert min(free) >= 0
    assert sum(free) < GIB  # all that fits


def test_a_wrong_plan_does_not_agree() -> None:
    target = load_target("4x3090")
    types = uniform("Q4_K", "Q5_0", "Q8_0")
    memory = gpu_memory(MODEL.geometry, target)
    placement = place(MODEL.tensors, types, memory, target)
    gpus = list(placement.gpus)
    gpus[1] = replace(gpus[1], weights_bytes=int(1.002 * gpus[1].weights_bytes))
    gpus[2] = replace(gpus[2], capacity_bytes=20 * GIB)
    wrong = replace(placement, gpus=tuple(gpus))
    found = verify(Entry("x", MODEL, types, 0, wrong, "m.gguf", 1), target, "stand-ins")
    assert not found.agrees
    assert not found.fits
    assert [one.gpu for one in found.compared if not one.agrees] == [1]


def test_tolerances() -> None:
    assert Compared(0, "weights", 1000 * GIB, 1001 * GIB).agrees
    assert not Compared(0, "weights", 998 * GIB, 1000 * GIB).agrees
    assert Compared(0, "compute", 1049 * GIB, 1000 * GIB).agrees
    assert not Compared(0, "compute", 1051 * GIB, 1000 * GIB).agrees
    assert Compared(0, "context", 0, 1 << 20).agrees
    assert not Compared(0, "context", 0, (1 << 20) + 1).agrees
    assert Verification("rpc", [], fits=True, host=0).agrees


def test_where_words_are_checked() -> None:
    assert where_of("rpc") == "rpc"
    with pytest.raises(Exception, match="--on gpu is none of auto, stand-ins, present, rpc"):
        where_of("gpu")
    assert ask_memory([]) == []
