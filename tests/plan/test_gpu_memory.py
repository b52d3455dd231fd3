"""What lies on which GPU of a model whose prediction layers draft tokens, against llama.cpp."""

from __future__ import annotations

from dataclasses import replace

import flagship
import make_shape
import pytest

from quantkit.config.recipe import MeasureRecipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.errors import InputError
from quantkit.models.families.registry import family_for
from quantkit.models.model import Model
from quantkit.plan.alternatives import largest_exactly
from quantkit.plan.gpu_memory import (
    HOST,
    check_draft,
    context_by_layer,
    gpu_memory,
    layers_of,
    padded_bytes,
    weights_by_layer,
)
from quantkit.plan.launch.settings import Launch
from quantkit.plan.level_plans import nominal_costs, place_exactly
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.placement import place
from quantkit.plan.plan import Entry, plan_types
from quantkit.plan.verify import Verification, verify

CONFIG = make_shape.model_config("nemotron-3-super", mtp=True)
MODEL = Model("super", family_for(CONFIG).metadata(CONFIG), make_shape.gguf_tensors(CONFIG))
COSTS = nominal_costs(MODEL, MeasureRecipe())
HEAD = 88
TYPES = {
    i.name: i.type_name
    if i.name not in COSTS
    else next(kind for kind in ("Q4_K", "Q5_0") if kind in COSTS[i.name])
    for i in MODEL.tensors
}
PUBLISHED = load_target("4x3090")
DRAFTS = PUBLISHED.changed(draft="mtp")
SERVES = PUBLISHED.changed(context_tokens=65_536, kv_type="f16", sequences=4)


def planned(target: Target) -> tuple[Entry, Verification]:
    (entry,) = plan_types("t", TYPES, target, MODEL, 1 << 20, COSTS).entries
    return entry, verify(entry, target, "fake")


@pytest.mark.parametrize("draft", ["none", "mtp"])
@pytest.mark.parametrize("target", [PUBLISHED, SERVES], ids=["published", "serves"])
@pytest.mark.parametrize("layers", ["balanced", "in_order"])
def test_a_plan_with_prediction_layers_is_what_llama_cpp_takes(
    target: Target, layers: str, draft: str
) -> None:
    entry, found = planned(target.changed(draft=draft, layers=layers))
    assert found.agrees
    assert found.fits
    assert entry.placement.run.draft == draft
    assert max(one.difference for one in found.compared if one.part != "compute") < 1e-4


def test_prediction_layers_that_do_not_draft_stay_in_the_file() -> None:
    memory = gpu_memory(MODEL.geometry, PUBLISHED)
    assert list(memory.unloaded) == [HEAD]
    own = {i.name for i in MODEL.tensors if i.name.startswith(f"blk.{HEAD}.")}
    at = layers_of(MODEL.tensors, 90, memory.unloaded)
    assert {name for name in own if at[name] == HOST} == own
    weights = weights_by_layer(MODEL.tensors, TYPES, 90, memory.unloaded)
    with_head = weights_by_layer(MODEL.tensors, TYPES, 90)
    assert (weights[HEAD], weights[-1]) == (0, with_head[-1])
    assert with_head[HEAD] > 1 << 30
    assert not gpu_memory(MODEL.geometry, DRAFTS).unloaded


def test_drafting_keeps_the_state_four_times_and_a_cache_more() -> None:
    """3 drafted tokens: 4 states of 40 layers, and one attention layer of 256 + 256 in F16."""
    plain, drafts = (context_by_layer(MODEL.geometry, target.run) for target in (PUBLISHED, DRAFTS))
    states = sum(4 * layer.recurrent_elements for layer in MODEL.geometry.layers)
    cache = PUBLISHED.context_tokens * 512 * 2
    assert sum(drafts) - sum(plain) == 3 * states + cache
    assert drafts[HEAD] == cache
    assert plain[HEAD] == 0


def test_the_head_context_lies_beside_the_output() -> None:
    """Its mask is held four times once more, on the one GPU that runs it."""
    entry, _ = planned(DRAFTS)
    plain, _ = planned(PUBLISHED)
    mask = 2 * DRAFTS.context_tokens * DRAFTS.ubatch_tokens
    more = [
        gpu.compute_bytes - other.compute_bytes
        for gpu, other in zip(entry.placement.gpus, plain.placement.gpus, strict=True)
    ]
    assert max(map(abs, more[:-1])) < mask / 10
    assert more[-1] > 4 * mask
    host = entry.placement.host_compute_bytes - plain.placement.host_compute_bytes
    assert host == pytest.approx(4 * mask, rel=0.05)


@pytest.mark.parametrize("kv", ["f16", "q8_0"])
@pytest.mark.parametrize("batch", [512, 2048])
@pytest.mark.parametrize(
    ("model", "uses"), [(MODEL, DRAFTS), (flagship.model(), PUBLISHED)], ids=["drafts", "plain"]
)
def test_estimates_are_close_where_llama_cpp_cannot_be_asked(
    model: Model, uses: Target, kv: str, batch: int
) -> None:
    target = uses.changed(kv_type=kv, ubatch_tokens=batch)
    (asked,), why = gpu_memories(model, [target])
    assert why is None
    estimated, compute = gpu_memory(model.geometry, target).compute, asked.compute
    assert estimated.estimated
    assert not compute.estimated
    assert estimated.gpu == pytest.approx(compute.gpu, rel=0.05)
    assert estimated.gpu + estimated.output == pytest.approx(compute.gpu + compute.output, rel=0.05)
    assert estimated.host == pytest.approx(compute.host, rel=0.05)


def test_the_largest_that_fits_counts_the_head_where_it_is_loaded() -> None:
    """Unloaded it may have any type; its bytes are in the file, not on a GPU."""
    on_gpus = {}
    for target in (PUBLISHED, DRAFTS):
        (memory,), _ = gpu_memories(MODEL, [target])
        found = largest_exactly(MODEL, COSTS, memory)
        assert found is not None
        head = sum(
            padded_bytes(info, found.types[info.name])
            for info in MODEL.tensors
            if info.name.startswith(f"blk.{HEAD}.")
        )
        placed = found.placement
        on_gpus[target.draft] = sum(gpu.weights_bytes for gpu in placed.gpus)
        unloaded = found.total_bytes - on_gpus[target.draft] - placed.host_bytes
        assert placed.fits
        assert unloaded == pytest.approx(head if target is PUBLISHED else 0, abs=1 << 20)
    assert on_gpus["none"] > on_gpus["mtp"]


def test_a_gpu_that_would_get_the_head_without_the_output() -> None:
    """Its mask lies with the head, not with the output: the first GPU cannot hold it too."""
    gpus = (GPUSpec(name="first", memory_gib=80), GPUSpec(name="last", memory_gib=24))
    target = DRAFTS.changed(layers="in_order").model_copy(update={"gpus": gpus})
    (memory,), _ = gpu_memories(MODEL, [target])
    weights = weights_by_layer(MODEL.tensors, TYPES, 90)
    load = [w + k for w, k in zip(weights, memory.kept, strict=True)]
    exact = sum(load[:-1]) + memory.compute.gpu + memory.reserve[0] + (64 << 20)
    memory = replace(memory, capacity=(exact, memory.capacity[1]))
    assert place(MODEL.tensors, TYPES, memory).tensor_split == (89, 1)
    placement = place_exactly(MODEL, TYPES, memory)
    assert placement.fits
    assert placement.tensor_split[1] > 1
    launch = Launch(placement, "m.gguf", "m", "nemotron_h_moe", 1)
    assert verify(Entry("x", MODEL, TYPES, 0, launch), target, "fake").agrees


def test_a_model_without_prediction_layers_cannot_draft() -> None:
    with pytest.raises(InputError, match=r"prediction layers.*none: keep .*\{mtp: keep\}"):
        gpu_memories(flagship.model(), [DRAFTS])
    check_draft(flagship.model().geometry, PUBLISHED)


def test_an_architecture_that_llama_cpp_cannot_let_draft() -> None:
    with pytest.raises(
        InputError, match=r"llama\.cpp cannot draft .* 1 prediction .* of nemotron_h;"
    ):
        check_draft(replace(MODEL.geometry, architecture="nemotron_h", predicts=False), DRAFTS)
