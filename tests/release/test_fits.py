"""Which GPU sets hold a level: the longest context of a column is the last that a plan takes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flagship
import pytest
from checkpoints import write_llama, write_nemotron

from quantkit.config.recipe import MeasureRecipe
from quantkit.config.target import GPUSpec, Target, known_targets, load_target
from quantkit.core.errors import DoesNotFitError, EnvironmentFault, InputError
from quantkit.core.progress import Progress
from quantkit.core.units import GIB
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.llamacpp import memory_plan
from quantkit.llamacpp.presets import ask_preset
from quantkit.models.checkpoint import open_checkpoint
from quantkit.models.model import Model
from quantkit.plan.allowed_types import smallest_types
from quantkit.plan.alternatives import LARGEST
from quantkit.plan.level_plans import nominal_costs, place_exactly
from quantkit.plan.llama_memory import gpu_memories
from quantkit.plan.placement import place
from quantkit.plan.plan import plan_types
from quantkit.plan.what_if import CONTEXTS
from quantkit.quantize.quantize import artifact_bytes
from quantkit.release.fits import contexts_of, fits_of, targets_of

pytestmark = pytest.mark.usefixtures("one_child")

Levels = dict[str, Sequence[TensorInfo]]

HYBRID = {
    "hybrid_override_pattern": "M*EM*E",
    "head_dim": 64,
    "hidden_size": 256,
    "n_routed_experts": 32,
    "moe_intermediate_size": 96,
    "moe_latent_size": 128,
    "moe_shared_expert_intermediate_size": 2048,
}
"""1.5 MiB in its smallest types, 17 MiB in F32: as much as some ten thousand tokens of context."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = write_nemotron(tmp_path_factory.mktemp("m") / "tiny", **HYBRID)
    return Model.of("tiny", open_checkpoint(folder))


@pytest.fixture(scope="module")
def levels(model: Model) -> Levels:
    """The smallest types and the largest."""
    smallest = smallest_types(model.tensors, nominal_costs(model, MeasureRecipe()), LARGEST)
    return {
        "small": [dataclasses.replace(i, type_name=smallest[i.name]) for i in model.tensors],
        "large": [dataclasses.replace(i, type_name="F32") for i in model.tensors],
    }


def target(*mib: float, **changes: object) -> Target:
    gpus = [{"name": f"{m} MiB", "memory_gib": m / 1024, "reserve_gib": 0.001} for m in mib]
    given = {"name": "mine", "gpus": gpus, "context_tokens": 50_000, "ubatch_tokens": 64}
    return Target.model_validate(given | changes)


def exactly(metadata: Metadata, tensors: Sequence[TensorInfo], one: Target) -> bool:
    """Whether the GPUs hold it at the target's context, of which alone llama.cpp is asked."""
    of = Model("level", metadata, tensors)
    (asked,), _ = gpu_memories(of, [one])
    return place_exactly(of, of.types, asked).fits


def planned(metadata: Metadata, tensors: Sequence[TensorInfo], one: Target) -> bool:
    """Whether `quantkit plan` finds that the artifact fits."""
    of = Model("level", metadata, tensors)
    try:
        plan_types("level", of.types, one, of, 1 << 20, nominal_costs(of, MeasureRecipe()))
    except DoesNotFitError:
        return False
    return True


TARGETS = (
    target(70, 70, kv_type="f16"),
    target(100, 30, name="uneven"),
    target(300, name="one", kv_type="f16", context_tokens=200_000),
    target(120, 90, 80, name="three", layers="in_order", kv_type="bf16", pipeline=False),
    target(46, 46, name="small"),
)


def test_the_longest_is_the_last_that_fits(model: Model, levels: Levels) -> None:
    found = fits_of(model.metadata, levels, TARGETS)
    assert found.estimated is None
    assert tuple(one.target for one in found.targets) == TARGETS
    seen = []
    for one in found.targets:
        assert one.refused is None
        assert list(one.levels) == ["small", "large"]
        for name, tensors in levels.items():
            tokens = sorted({*CONTEXTS, one.target.context_tokens})
            ways = [one.target.changed(context_tokens=n) for n in tokens]
            fitting = [way.context_tokens for way in ways if exactly(model.metadata, tensors, way)]
            assert one.levels[name] == (fitting[-1] if fitting else None)
            seen.append(one.levels[name])
    assert seen[:2] == [65_536, 50_000]
    assert seen[4:6] == [262_144, 200_000]
    assert seen[-2:] == [32_768, None]


def test_it_is_the_exact_cut_that_must_fit(model: Model, levels: Levels) -> None:
    """Where the buffers of an even cut would leave room, and those of its own do not."""
    one = target(34.6, 34.6, 34.6, kv_type="f16", context_tokens=32_768)
    small = dataclasses.replace(model, tensors=levels["small"])
    (even,), _ = gpu_memories(small, [one])
    assert place(small.tensors, small.types, even).fits
    (found,) = fits_of(model.metadata, levels, [one]).targets
    assert found.levels["small"] is None
    assert not planned(model.metadata, levels["small"], one)


def test_a_plan_says_the_same(model: Model, levels: Levels) -> None:
    one = TARGETS[0]
    (found,) = fits_of(model.metadata, levels, [one]).targets
    for name, tensors in levels.items():
        longest = found.levels[name]
        assert longest is not None
        longer = min(n for n in CONTEXTS if n > longest)
        assert planned(model.metadata, tensors, one.changed(context_tokens=longest))
        assert not planned(model.metadata, tensors, one.changed(context_tokens=longer))


def test_buffers_of_an_even_cut_are_those_of_any_types(model: Model, levels: Levels) -> None:
    """So one level's question stands for all."""
    asked = [
        [m.compute for m in gpu_memories(dataclasses.replace(model, tensors=some), TARGETS)[0]]
        for some in (*levels.values(), model.tensors)
    ]
    assert asked[0] == asked[1] == asked[2]
    assert not any(buffers.estimated for buffers in asked[0])


def test_the_flagship_as_it_was_published() -> None:
    """Its 70.6 GiB lie on four GPUs of 24 GiB at 504K, and not on three."""
    metadata, tensors = flagship.metadata(), flagship.tensors()
    super_model = Model("super", metadata, tensors)
    stock = ask_preset(super_model, "Q4_K_S", has_imatrix=True).types
    q4 = [dataclasses.replace(info, type_name=stock[info.name]) for info in tensors]
    assert artifact_bytes(super_model, stock) / GIB == pytest.approx(70.6, abs=0.05)
    names = ("2x3090", "3x3090", "4x3090", "1xA100-80")
    found = fits_of(metadata, {"Q4": q4}, [load_target(name) for name in names])
    assert found.estimated is None
    assert [one.levels["Q4"] for one in found.targets] == [None, None, 516_096, 1 << 20]
    assert exactly(metadata, q4, load_target("4x3090"))
    assert not exactly(metadata, q4, load_target("4x3090").changed(context_tokens=1 << 20))
    assert not exactly(metadata, q4, load_target("3x3090").changed(context_tokens=32_768))


class Counted(Progress):
    total = done = 0.0

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.total = total

    def advance(self, amount: float) -> None:
        self.done += amount


def test_targets_that_cannot_run_the_model_spoil_no_others(model: Model, levels: Levels) -> None:
    many = target(*(100,) * 16, name="many")
    targets = [many, target(400, 400), target(400, name="drafting", draft="mtp")]
    progress = Counted()
    first, second, third = fits_of(model.metadata, levels, targets, progress).targets
    assert first.refused is not None
    assert "target many has 16 GPUs" in first.refused
    assert third.refused is not None
    assert "prediction layers" in third.refused
    assert first.levels == third.levels == {"small": None, "large": None}
    assert second.refused is None
    assert None not in second.levels.values()
    assert progress.done == progress.total == 2


def test_a_cache_that_llama_cpp_refuses_is_one_target_s_fault(tmp_path: Path) -> None:
    """Asked for a q8_0 cache of heads of 80, it would answer for no other target either."""
    folder = write_llama(tmp_path / "m", head_dim=80, max_position_embeddings=65_536)
    source = open_checkpoint(folder)
    quantized, plain = target(400, kv_type="q8_0"), target(400, kv_type="f16", name="plain")
    first, second = fits_of(source.metadata, {"Q8": source.tensors}, [quantized, plain]).targets
    assert first.levels == {"Q8": None}
    assert first.refused is not None
    assert "q8_0 KV cache" in first.refused
    assert second.refused is None
    assert second.levels == {"Q8": 65_536}
    with pytest.raises(InputError, match="q8_0"):
        exactly(source.metadata, source.tensors, quantized)


def trained_for(metadata: Metadata, tokens: int) -> Metadata:
    name = f"{metadata['general.architecture'].value}.context_length"
    return {**metadata, name: MetaValue("u32", tokens)}


def test_contexts_are_those_that_the_model_was_trained_for(model: Model, levels: Levels) -> None:
    assert contexts_of(model.metadata) == CONTEXTS
    assert contexts_of(trained_for(model.metadata, (1 << 20) - 1)) == CONTEXTS[:5]
    assert contexts_of(trained_for(model.metadata, 32_768)) == (32_768,)
    assert contexts_of(trained_for(model.metadata, 8192)) == (8192,)
    large = target(400, 400, context_tokens=131_072)
    for trained, longest in ((8192, 8192), (40_000, 40_000), (262_143, 131_072)):
        metadata = trained_for(model.metadata, trained)
        (found,) = fits_of(metadata, levels, [large]).targets
        assert set(found.levels.values()) == {longest}


def test_llama_cpp_does_not_answer(
    model: Model, levels: Levels, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(questions: object) -> object:
        raise EnvironmentFault("no breakdown here")

    monkeypatch.setattr(memory_plan, "_answers", {})
    monkeypatch.setattr(memory_plan, "ask_of_files", refuse)
    found = fits_of(model.metadata, levels, TARGETS)
    assert "no breakdown here" in str(found.estimated)
    assert found.targets[0].levels["small"] is not None


def test_the_build_s_own_target_is_among_those_that_ship() -> None:
    shipped = [load_target(name) for name in known_targets()]
    assert targets_of(load_target("4x3090")) == shipped
    mine = target(100, devices=("GPU-96ca9e2d",))
    assert targets_of(mine) == [*shipped, target(100)]
    changed = load_target("4x3090").changed(kv_type="f16", context_tokens=65_536)
    found = targets_of(changed)
    assert [one.name for one in found] == known_targets()
    assert changed in found
    spec = GPUSpec(name="RTX 3060", memory_gib=12)
    another = Target(name="8x3090", gpus=(spec,), context_tokens=8192)
    assert [one for one in targets_of(another) if one.name == "8x3090"] == [another]
