"""What else would fit: each answer fits, and a little more does not, as llama.cpp itself says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import flagship
import pytest
from checkpoints import write_llama, write_nemotron

from quantkit.config.levels import LevelRecipe, parse_size
from quantkit.config.recipe import MeasureRecipe, Recipe
from quantkit.config.target import MOST_CONTEXT_TOKENS, GPUSpec, Target, load_target
from quantkit.core.errors import InputError
from quantkit.core.units import GIB, MIB
from quantkit.formats.tensors import MetaValue
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.model import Model
from quantkit.plan.allocate import allocate
from quantkit.plan.allowed_types import Costs, smallest_types
from quantkit.plan.alternatives import (
    CONTEXT_STEP,
    LARGEST,
    largest_exactly,
    largest_level,
    longest_context,
    possible_kv,
    ways_out,
)
from quantkit.plan.gpu_memory import gpu_memory, padded_bytes
from quantkit.plan.level_plans import model_host_bytes, nominal_costs, place_exactly
from quantkit.plan.llama_memory import ContextLadder, ask_ladders, gpu_memories
from quantkit.plan.placement import Placement, place
from quantkit.plan.plan import plan_recipe, plan_types
from quantkit.quantize.quantize import artifact_bytes, overhead_bytes

pytestmark = pytest.mark.usefixtures("one_child")

CONTEXT = 262_144
HYBRID = {
    "hybrid_override_pattern": "M*EM*EM*E",
    "head_dim": 64,
    "hidden_size": 256,
    "moe_intermediate_size": 96,
    "moe_latent_size": 64,
    "moe_shared_expert_intermediate_size": 160,
}
"""Attention in every third, and experts whose rows only blocks of 32 fit."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    source = open_checkpoint(write_nemotron(tmp_path_factory.mktemp("m") / "tiny", **HYBRID))
    return Model.of("tiny", source)


@pytest.fixture(scope="module")
def costs(model: Model) -> Costs:
    return nominal_costs(model, MeasureRecipe())


def target(*mib: float, context: int = CONTEXT, **changes: object) -> Target:
    gpus = [{"name": f"{m} MiB", "memory_gib": m / 1024, "reserve_gib": 0.001} for m in mib]
    given = {"name": "mine", "gpus": gpus, "context_tokens": context, "ubatch_tokens": 64}
    return Target.model_validate(given | changes)


def ladder(model: Model, one: Target, *tokens: int) -> ContextLadder:
    (found,), why = ask_ladders(model, [one], tokens)
    assert why is None
    return found


def exactly(model: Model, types: Mapping[str, str], one: Target, tokens: int) -> Placement:
    """The placement at a context, by llama.cpp's own numbers for it alone."""
    at = one.changed(context_tokens=tokens)
    (memory,), _ = gpu_memories(model, [at])
    return place_exactly(model, types, memory)


CARDS = {
    "even": (60, 60),
    "uneven": (100, 24),
    "three": (30, 55, 31),
    "one": (47,),
}


@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("gpus", CARDS)
def test_the_longest_context_is_the_longest(model: Model, costs: Costs, gpus: str, kv: str) -> None:
    types = smallest_types(model.tensors, costs, LARGEST)
    one = target(*CARDS[gpus], kv_type=kv)
    tokens = longest_context(types, ladder(model, one, 4096, CONTEXT))
    assert tokens is not None
    assert 4096 < tokens < CONTEXT
    assert tokens % CONTEXT_STEP == 0
    assert exactly(model, types, one, tokens).fits
    assert not exactly(model, types, one, tokens + CONTEXT_STEP).fits


def test_a_file_may_say_that_it_was_trained_for_any_context(model: Model, costs: Costs) -> None:
    """llama.cpp takes memory of this machine for each token that it is asked about."""
    boundless = model.with_context((1 << 32) - 1)
    one = target(200)
    types = smallest_types(model.tensors, costs, LARGEST)
    asked = ladder(boundless, one, 4096, (1 << 32) - 1)
    assert [tokens for tokens, _ in asked.rungs] == [4096, MOST_CONTEXT_TOKENS]
    tokens = longest_context(types, asked)
    assert tokens is not None
    assert exactly(boundless, types, one, tokens).fits
    with pytest.raises(InputError, match=str(MOST_CONTEXT_TOKENS)):
        one.changed(context_tokens=MOST_CONTEXT_TOKENS + 1)


def test_where_the_buffers_bend_it_is_the_longest_too() -> None:
    """A ladder of two rungs is a tenth off in the middle, in either direction: it is refined."""
    large = flagship.model()
    types = smallest_types(large.tensors, flagship.costs(), LARGEST)
    weights = sum(padded_bytes(info, types[info.name]) for info in large.tensors) / GIB
    for gpus, more in ((1, 1.2), (2, 1.6)):
        spec = GPUSpec(name="c", memory_gib=weights / gpus + more, reserve_gib=0, count=gpus)
        one = Target(name="t", gpus=(spec,), context_tokens=1 << 20)
        wide = ladder(large, one, 4096, 1 << 20)
        tokens = longest_context(types, wide)
        assert tokens is not None
        assert 16_384 < tokens < 500_000
        assert exactly(large, types, one, tokens).fits
        assert not exactly(large, types, one, tokens + CONTEXT_STEP).fits
        at = one.changed(context_tokens=tokens)
        assert wide.memory(tokens).compute != ladder(large, at, tokens).rungs[0][1]


def test_the_ends_of_a_ladder(model: Model, costs: Costs) -> None:
    types = smallest_types(model.tensors, costs, LARGEST)
    large, small = target(500, 500), target(2, 2)
    assert longest_context(types, ladder(model, large, 4096, 30_001)) == 30_001
    assert longest_context(types, ladder(model, small, 4096, CONTEXT)) is None
    # a little more than the first rung fits, which is no multiple
    one = target(20, 20)
    tokens = longest_context(types, ladder(model, one, 4096, CONTEXT))
    assert tokens is not None
    found = longest_context(types, ladder(model, one, tokens + 1, CONTEXT))
    assert found in (None, tokens + 1)
    assert (found is not None) == exactly(model, types, one, tokens + 1).fits


def test_estimates_are_not_asked_again(model: Model, costs: Costs) -> None:
    """Where llama.cpp cannot be asked, the answer is the ladder's own."""
    types = smallest_types(model.tensors, costs, LARGEST)
    one = target(60, 60)
    rungs = tuple(
        (n, gpu_memory(model.geometry, one.changed(context_tokens=n)).compute)
        for n in (4096, CONTEXT)
    )
    tokens = longest_context(types, ContextLadder(model, one, rungs))
    assert tokens is not None
    for n, fits in ((tokens, True), (tokens + CONTEXT_STEP, False)):
        memory = gpu_memory(model.geometry, one.changed(context_tokens=n))
        assert place(model.tensors, types, memory).fits is fits


@pytest.mark.parametrize("parts", [(1,), (1, 1), (6, 5), (5, 5, 6)])
def test_the_largest_level_fits_and_no_tensor_could_be_larger(
    model: Model, costs: Costs, parts: tuple[int, ...]
) -> None:
    """On its cut, no single tensor's next type fits; and it is no smaller than the best one."""
    one = roomy(model, costs, parts)
    (memory,), _ = gpu_memories(model, [one])
    found = largest_exactly(model, costs, memory)
    assert found is not None
    assert found.placement.fits
    assert not found.placement.compute_is_estimated
    assert exactly(model, found.types, one, 4096).fits
    assert found.total_bytes == artifact_bytes(model, found.types)
    planned = largest_level(model, costs, memory)
    assert planned is not None
    assert planned.total_bytes >= found.total_bytes
    counts = planned.placement.tensor_split
    layer_of = {}
    for info in model.tensors:
        match = re.match(r"blk\.(\d+)\.", info.name)
        layer_of[info.name] = int(match[1]) if match else len(model.geometry.layers)
    ends = [sum(counts[: i + 1]) for i in range(len(counts))]
    grew = 0
    for info in model.tensors:
        if info.name not in costs or info.name == "token_embd.weight":
            continue
        now = padded_bytes(info, planned.types[info.name])
        larger = [s for s in (padded_bytes(info, kind) for kind in costs[info.name]) if s > now]
        if larger:
            gpu = next(i for i, end in enumerate(ends) if layer_of[info.name] < end)
            assert min(larger) - now > planned.placement.gpus[gpu].free_bytes, info.name
            grew += 1
    assert grew > 0  # or the GPUs hold the model in its largest types, and nothing is tested
    budget = memory.weights_room + model_host_bytes(model, costs, memory)
    overhead = overhead_bytes(model)
    best = allocate(model.tensors, costs, budget, overhead, LARGEST, memory)
    assert planned.total_bytes > 0.97 * best.total_bytes


def test_the_largest_level_of_gpus_that_hold_everything(model: Model, costs: Costs) -> None:
    """Whatever the target's own budget for weights is."""
    one = target(900, 900, weight_budget_gib=0.001)
    (memory,), _ = gpu_memories(model, [one])
    found = largest_level(model, costs, memory)
    assert found is not None
    widest = {name: max(kinds, key=lambda k: -kinds[k]) for name, kinds in costs.items()}
    assert {name: found.types[name] for name in costs} == widest
    assert largest_level(model, costs, gpu_memory(model.geometry, target(1))) is None


@pytest.mark.slow
def test_the_flagship_s_largest_level_at_each_context() -> None:
    large, costs = flagship.model(), flagship.costs()
    one = load_target("4x3090").changed(weight_budget_gib="auto")
    for tokens in (32_768, 516_096, 1 << 20):
        at = one.changed(context_tokens=tokens)
        (memory,), _ = gpu_memories(large, [at])
        found = largest_exactly(large, costs, memory)
        assert found is not None
        free = [gpu.free_bytes for gpu in found.placement.gpus]
        assert min(free) >= 0
        assert sum(free) < GIB


def roomy(model: Model, costs: Costs, parts: tuple[int, ...]) -> Target:
    """The smallest GPUs in these parts that hold twice the model's smallest form."""
    smallest = smallest_types(model.tensors, costs, LARGEST)
    wanted = 2 * artifact_bytes(model, smallest)
    one = target(*parts, context=4096, ubatch_tokens=8)
    (asked,), _ = gpu_memories(model, [one])
    for step in range(1, 400):
        sizes = (1 + 0.02 * step * part / min(parts) for part in parts)
        found = target(*sizes, context=4096, ubatch_tokens=8, weight_budget_gib=0.0001)
        memory = gpu_memory(model.geometry, found, asked.compute)
        largest = largest_level(model, costs, memory)
        if largest is not None and largest.total_bytes > wanted:
            return found
    raise AssertionError("no such GPUs")


OPTIONS = re.compile(r"\(((?:--[a-z]+ [\w.]+ ?)+)\)")


def followed(words: str, one: Target) -> tuple[Target, bool]:
    """The target that a way out's options lead to, and whether they ask for the largest level."""
    match = OPTIONS.search(words)
    assert match, words
    given = dict(zip(match[1].split()[::2], match[1].split()[1::2], strict=True))
    largest = given.pop("--levels", None) == "max"
    names = {"--context": "context_tokens", "--kv": "kv_type", "--budget": "weight_budget_gib"}
    return one.changed(**{names[option]: value for option, value in given.items()}), largest


@pytest.mark.parametrize(
    ("gpus", "changes"),
    [
        ((15, 15), {"kv_type": "f16"}),
        ((33, 12, 14), {"kv_type": "q8_0"}),
        ((40,), {"kv_type": "bf16", "ubatch_tokens": 256}),
        ((400, 400), {"weight_budget_gib": 0.0001}),
        ((30, 30), {"kv_type": "f16", "flash_attention": False}),
    ],
)
def test_ways_out_fit(
    model: Model, costs: Costs, gpus: tuple[int, ...], changes: dict[str, object]
) -> None:
    """Each is planned as it says: with its options, and with just the size that it names."""
    one = target(*gpus, **changes)
    smallest = smallest_types(model.tensors, costs, LARGEST)
    needed = artifact_bytes(model, smallest)
    found = ways_out(model, costs, one)
    assert found
    for words in found:
        changed, largest = followed(words, one)
        assert largest
        size = re.match(r"([\d.]+ [GM]iB) with ([\d,]+) tokens of (\w+) context", words)
        assert size, words
        assert int(size[2].replace(",", "")) == changed.context_tokens
        assert size[3] == changed.kv_type
        levels = [LevelRecipe(name="max")]
        if (parse_size(size[1]) or 0) >= needed:  # it is cut off after two digits
            levels.append(LevelRecipe(name="size", size=size[1]))
        for level in levels:
            recipe = Recipe(name="r", levels=(level,))
            (entry,) = plan_recipe(recipe, changed, model, CONTEXT).entries
            assert entry.placement.fits
            assert entry.placement.run.context_tokens == changed.context_tokens
            assert entry.total_bytes <= (parse_size(size[1]) or 0) + 64 * 1024


def test_ways_out_of_a_file_as_it_is(model: Model, costs: Costs) -> None:
    """Its own longest context is named first, and a smaller level, which has room for more."""
    one = target(22, 22, kv_type="f16")
    types = {info.name: info.type_name for info in model.tensors}
    kept, smaller, *_ = ways_out(model, costs, one, types)
    assert kept.startswith("these types with ")
    changed, largest = followed(kept, one)
    assert not largest
    (entry,) = plan_types("as it is", types, changed, model, CONTEXT, costs).entries
    assert entry.placement.run.context_tokens == changed.context_tokens < CONTEXT
    more, largest = followed(smaller, one)
    assert largest
    assert more.context_tokens > changed.context_tokens


def test_a_smaller_cache_is_named_only_where_it_helps(model: Model, costs: Costs) -> None:
    contexts = []
    for words in ways_out(model, costs, target(24, 24, kv_type="f16")):
        changed, _ = followed(words, target(24, 24, kv_type="f16"))
        contexts.append(changed.context_tokens)
    assert contexts == sorted(set(contexts))
    # the target's own is enough: only the level is too large
    (words,) = ways_out(model, costs, target(400, 400, kv_type="f16"))
    assert f"{CONTEXT:,} tokens of f16 context (--levels max)" in words


def test_no_way_out(model: Model, costs: Costs) -> None:
    assert ways_out(model, costs, target(1.2, 1.2)) == []


def test_a_budget_below_the_smallest_form_is_to_be_lifted(model: Model, costs: Costs) -> None:
    one = target(400, 400, weight_budget_gib=0.0002)
    (words,) = ways_out(model, costs, one)
    assert "--levels max --budget auto" in words
    # one that the smallest form keeps is kept, and no larger size is promised
    smallest = smallest_types(model.tensors, costs, LARGEST)
    size = artifact_bytes(model, smallest)
    (words,) = ways_out(model, costs, target(400, 400, weight_budget_gib=1.05 * size / GIB))
    assert "--budget" not in words
    assert float(words.split()[0]) == pytest.approx(1.05 * size / MIB, abs=0.01)


def test_types_that_do_not_divide_a_head_are_not_offered(tmp_path: Path) -> None:
    """llama.cpp refuses a q8_0 cache for heads of 80; asked for one, all would be an error."""
    folder = write_llama(tmp_path / "m", head_dim=80, max_position_embeddings=CONTEXT)
    source = open_checkpoint(folder)
    odd = Model.of("odd", source)
    assert possible_kv(odd, ["f16", "bf16", "q8_0", "q4_0"]) == ["f16", "bf16"]
    found = ways_out(odd, nominal_costs(odd, MeasureRecipe()), target(20, 20, kv_type="f16"))
    assert len(found) == 1
    assert " f16 context" in found[0]
    name = source.metadata["general.architecture"].value
    both = {f"{name}.attention.{of}_length": MetaValue("u32", 96) for of in ("key", "value")}
    even = Model("even", {**source.metadata, **both}, source.tensors)
    assert possible_kv(even, ["f16", "q8_0"]) == ["f16", "q8_0"]
    without = {k: v for k, v in source.metadata.items() if "_length" not in k or k in both}
    plain = {k: v for k, v in without.items() if k not in both}
    sizes = {k: v for k, v in source.metadata.items() if "embedding_length" in k or "context" in k}
    default = Model("default", {**plain, **sizes}, source.tensors)
    assert possible_kv(default, ["f16", "q8_0"]) == ["f16"]  # 32 / 4 heads are 8
