"""Plans held against llama.cpp: the flagship on GPUs of every kind, and models of each family."""

from __future__ import annotations

import flagship
import pytest

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import Recipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.errors import InputError
from quantkit.core.units import GIB
from quantkit.llamacpp.memory_plan import ask_memory
from quantkit.plan.allowed_types import smallest_types
from quantkit.plan.alternatives import LARGEST, largest_level
from quantkit.plan.gpu_memory import gpu_memory, padded_bytes
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import place_exactly
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.placement import place
from quantkit.plan.plan import Entry, plan_recipe
from quantkit.plan.verify import Compared, Verification, verify, where_of

MODEL = flagship.model()
COSTS = flagship.costs()
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
    found = largest_level(MODEL, COSTS, gpu_memory(MODEL.geometry, target))
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
    memories, why = gpu_memories(MODEL, targets)
    assert why is None
    for target, memory in zip(targets, memories, strict=True):
        expected = place(MODEL.tensors, types, memory)
        assert expected.fits
        placement = place_exactly(MODEL, types, memory)
        assert placement.tensor_split == expected.tensor_split
        launch = Launch(placement, "m.gguf", "m", "nemotron_h_moe", 1_048_576)
        found = verify(Entry(name, MODEL, types, 0, launch), target, "fake")
        assert found.agrees
        assert len(found.compared) == 12
        for gpu, planned in enumerate(expected.gpus):
            weights, context, compute = found.compared[3 * gpu : 3 * gpu + 3]
            assert planned.weights_bytes == pytest.approx(weights.found, rel=1e-4)
            assert planned.context_bytes == pytest.approx(context.found, rel=1e-4)
            # before the cut was known: never too little, and at most 5 % too much
            assert 0.999 * compute.found < planned.compute_bytes < 1.05 * compute.found


def test_the_published_run() -> None:
    """71 GiB on four RTX 3090 at 504K: 20 to 21 GiB a GPU, confirmed by llama.cpp."""
    recipe = Recipe(name="r", levels=(LevelRecipe(name="all", size="71 GiB"),))
    target = load_target("4x3090")
    (entry,) = plan_recipe(recipe, target, MODEL, 1_048_576).entries
    assert 0.99 * 71 * GIB < entry.total_bytes <= 71 * GIB
    for gpu in entry.placement.gpus:
        assert 19.5 * GIB < gpu.total_bytes - gpu.reserve_bytes < 21.5 * GIB
    found = verify(entry, target, "fake")
    assert found.agrees
    assert found.fits


def test_the_largest_level_at_a_million_tokens() -> None:
    recipe = Recipe(name="r", levels=(LevelRecipe(name="max"),))
    target = load_target("4x3090").changed(context_tokens=1 << 20, weight_budget_gib="auto")
    (entry,) = plan_recipe(recipe, target, MODEL, 1 << 20).entries
    assert verify(entry, target, "fake").fits
    assert 60 * GIB < entry.total_bytes < 71 * GIB
    free = [gpu.free_bytes for gpu in entry.placement.gpus]
    assert min(free) >= 0
    assert sum(free) < GIB  # all that fits


def test_a_wrong_plan_does_not_agree() -> None:
    target = load_target("4x3090")
    types = uniform("Q4_K", "Q5_0", "Q8_0")
    memory = gpu_memory(MODEL.geometry, target)
    placement = place(MODEL.tensors, types, memory)
    gpus = list(placement.gpus)
    more = int(1.002 * gpus[1].weights_bytes)
    gpus[1] = gpus[1].model_copy(update={"weights_bytes": more})
    gpus[2] = gpus[2].model_copy(update={"capacity_bytes": 20 * GIB})
    wrong = placement.model_copy(update={"gpus": tuple(gpus)})
    launch = Launch(wrong, "m.gguf", "m", "nemotron_h_moe", 1)
    found = verify(Entry("x", MODEL, types, 0, launch), target, "fake")
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
    assert where_of("stand-ins") == "fake"
    with pytest.raises(InputError, match="--on gpu"):
        where_of("gpu")
    assert ask_memory([]) == []
