"""Which levels are planned, and whole fits: bytes as the files will have them, on every GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import flagship
import make_shape
import pytest

from quantkit.build.context import BuildContext, Job
from quantkit.build.run import _preflight
from quantkit.config.recipe import MeasureRecipe, Recipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.console import Console
from quantkit.core.errors import DoesNotFitError, InputError
from quantkit.core.units import GB, GIB
from quantkit.formats.gguf_writer import lay_out
from quantkit.formats.tensor_types import BY_NAME
from quantkit.llamacpp.presets import StockTypes, ask_preset
from quantkit.models.choose import choose_model, open_source
from quantkit.models.families.registry import family_for
from quantkit.models.model import Model
from quantkit.plan import level_plans
from quantkit.plan.allocation_file import AllocationFile, fallback_text
from quantkit.plan.allowed_types import Costs
from quantkit.plan.gpu_memory import GPUMemory, gpu_memory
from quantkit.plan.level_plans import NOMINAL_GAP, Fit, LevelPlan, nominal_costs
from quantkit.study.sensitivity import Probe, Sensitivity, UnitCost

DEMO = open_source(choose_model("demo"))
FLAGSHIP = flagship.model()
SMALL = Model.of("small", DEMO)
COSTS = flagship.costs()


def recipe(*levels: dict[str, object]) -> Recipe:
    return Recipe.model_validate({"name": "r", "levels": levels})


def target(*gib: float, context: int = 131_072, budget: float | None = None) -> Target:
    gpus = tuple(GPUSpec(name=f"{size} GiB", memory_gib=size) for size in gib)
    return Target(
        name="mine", gpus=gpus, context_tokens=context, weight_budget_gib=budget or "auto"
    )


def memory_of(model: Model, gpus: Target) -> GPUMemory:
    """Without asking llama.cpp: these tests are of pure decisions."""
    return gpu_memory(model.geometry, gpus)


def plan_levels(levels: Recipe, gpus: Target, model: Model) -> tuple[list[LevelPlan], list[str]]:
    return level_plans.plan_levels(levels, model, memory_of(model, gpus))


def fit(plan: LevelPlan, model: Model, costs: Costs, gpus: Target, gap: float = 0.0) -> Fit:
    return level_plans.fit(plan, model, costs, memory_of(model, gpus), gap)


def file_bytes(model: Model, types: dict[str, str]) -> int:
    infos = [i.with_type(types[i.name]) for i in model.tensors]
    return sum(layout.size_bytes for layout in lay_out(model.name, model.metadata, infos))


def test_levels_of_every_kind() -> None:
    levels = recipe(
        {"name": "fit"},
        {"name": "bits", "bits_per_weight": 4.5},
        {"name": "size", "size": "65 GiB"},
        {"name": "stock", "preset": "Q4_K_S", "baseline": True},
        {"name": "Q8_0", "preset": "Q8_0"},
        {"name": "large", "size": "90GB"},
    )
    plans, notes = plan_levels(levels, load_target("4x3090"), FLAGSHIP)
    budgets = {plan.recipe.name: plan.budget_bytes for plan in plans}
    assert budgets == {
        "fit": 71 * GIB,
        "bits": int(4.5 * FLAGSHIP.elements / 8),
        "size": 65 * GIB,
        "stock": 71 * GIB,
    }
    assert [note.split(" exceeds")[0] for note in notes] == [
        "level Q8_0 (119.64 GiB)", "level large (83.82 GiB)",
    ]  # fmt: skip
    stock = plans[-1].stock
    assert stock is not None
    fitted = fit(plans[-1], FLAGSHIP, COSTS, load_target("4x3090"))
    assert fitted.allocation.types == stock.types
    assert fitted.placement.fits
    # llama.cpp's own dry run says 75.81 GB
    assert fitted.allocation.total_bytes / GB == pytest.approx(75.81, abs=0.01)
    assert set(stock.fallbacks) == {i.name for i in FLAGSHIP.tensors if "down_exps" in i.name}
    assert fallback_text(stock.fallbacks) == "40 tensors fell back: 35 Q4_K → Q5_0, 5 Q5_K → Q5_1"


def test_a_preset_whose_layers_fit_no_gpu_is_left_out() -> None:
    """75.8 GB in all would be room enough, but no way to cut its layers is."""
    uneven = target(*[8.2] * 12)
    levels = recipe({"name": "all"}, {"name": "stock", "preset": "Q4_K_S"})
    plans, (note,) = plan_levels(levels, uneven, FLAGSHIP)
    assert [plan.recipe.name for plan in plans] == ["all"]
    assert note.startswith("level stock does not fit mine: 8.2 GiB would need")
    assert plans[0].budget_bytes > 71 * GIB


def test_a_fit_is_the_file_s_size_and_keeps_every_gpu() -> None:
    uneven = target(24, 16, 24, 12, context=262_144)
    (plan,), _ = plan_levels(recipe({"name": "all"}), uneven, FLAGSHIP)
    found = fit(plan, FLAGSHIP, COSTS, uneven, NOMINAL_GAP)
    allocation, placement = found.allocation, found.placement
    assert allocation.total_bytes == file_bytes(FLAGSHIP, dict(allocation.types))
    assert allocation.total_bytes <= plan.budget_bytes
    assert placement.fits
    assert sum(placement.tensor_split) == 89
    room = sum(gpu.capacity_bytes for gpu in placement.gpus)
    assert sum(gpu.free_bytes for gpu in placement.gpus) < 0.005 * room
    assert allocation.gap is not None
    assert allocation.gap <= NOMINAL_GAP


def test_shards_count_in_the_size() -> None:
    """Two files of at most 50 GB, from a source of one: each has a header."""
    one = [i.with_type("Q4_0") for i in FLAGSHIP.tensors if i.row_elements % 32 == 0]
    source = Model("super", FLAGSHIP.metadata, one)
    (plan,), _ = plan_levels(recipe({"name": "all", "size": "75GB"}), target(200), source)
    costs = nominal_costs(source, MeasureRecipe(candidates=("Q8_0", "Q5_0", "Q4_1", "Q4_0")))
    found = fit(plan, source, costs, target(200), NOMINAL_GAP).allocation
    assert found.total_bytes == file_bytes(source, dict(found.types))
    assert 0.995 * 75 * GB < found.total_bytes <= 75 * GB


def test_the_host_s_embedding_does_not_take_the_gpus_room() -> None:
    memory = gpu_memory(FLAGSHIP.geometry, target(40))
    alone = level_plans.target_budget(memory)
    assert alone == sum(memory.rooms) - sum(memory.kept)
    assert level_plans.target_budget(memory, GIB) == alone + GIB
    assert (
        level_plans.target_budget(dataclasses.replace(memory, target=target(40, budget=30)), GIB)
        == 30 * GIB
    )


def test_prediction_layers_have_no_importance_matrix() -> None:
    """Types that need one are none of theirs, and a preset that has them is refused at once."""
    config = make_shape.model_config("nemotron-3-super", mtp=True)
    metadata = family_for(config).metadata(config)
    model = Model("mtp", metadata, make_shape.gguf_tensors(config))
    layers, trunk = len(model.geometry.layers), FLAGSHIP.geometry.trunk_layers
    assert (layers, trunk) == (89, 88)
    assert model.geometry.trunk_layers == trunk
    costs = nominal_costs(model, MeasureRecipe())
    needing = {
        name for name, kinds in costs.items() if any(BY_NAME[kind].needs_imatrix for kind in kinds)
    }
    own = {name for name in costs if name.startswith("blk.88.")}
    assert own
    assert not needing & own
    assert needing == {
        name for name, kinds in COSTS.items() if any(BY_NAME[kind].needs_imatrix for kind in kinds)
    }
    large = target(*[80] * 4)
    for preset in ("IQ2_XXS", "Q2_K_S"):
        levels = recipe({"name": "all"}, {"name": preset, "preset": preset})
        with pytest.raises(InputError, match=r"need an importance matrix: .*blk\.88\..*mtp: drop"):
            plan_levels(levels, large, model)
        assert len(plan_levels(levels, large, FLAGSHIP)[0]) == 2
    plans, _ = plan_levels(recipe({"name": "Q4", "preset": "Q4_K_S"}), large, model)
    assert plans[0].stock is not None
    with pytest.raises(InputError, match=r"pin"):
        plan_levels(recipe({"name": "all", "pin": {r"^blk\.88\.": "IQ2_S"}}), large, model)


def test_llama_cpp_is_asked_once_for_each_preset_of_a_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the folder is made, and when the levels are built."""
    asked: list[str] = []

    def ask(model: Model, preset: str, *, has_imatrix: bool) -> StockTypes:
        asked.append(preset)
        return ask_preset(model, preset, has_imatrix=has_imatrix)

    monkeypatch.setattr(level_plans, "ask_preset", ask)
    levels = recipe({"name": "A", "preset": "Q4_K_S"}, {"name": "B", "preset": "Q8_0"})
    out, target = tmp_path / "out", load_target("4x3090")
    job = Job(choose_model("demo"), levels, out, 1, out=out, target=target)
    context = BuildContext(job, Console(quiet=True))
    _preflight(context)
    plans, _ = context.levels
    assert [plan.stock.preset for plan in plans if plan.stock] == asked == ["Q4_K_S", "Q8_0"]


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ([{"name": "Q1", "bits_per_weight": 1}], r"Q1 asks for 1 bits per weight"),
        ([{"name": "s", "size": "1 MB"}], r"s asks for 1 MB, but the smallest types"),
        ([{"name": "s", "size": "200 GiB"}], r"nothing fits mine: .*add a level without a size"),
    ],
)
def test_what_cannot_be_planned_says_the_way_out(
    levels: list[dict[str, object]], words: str
) -> None:
    with pytest.raises(DoesNotFitError, match=words):
        plan_levels(recipe(*levels), target(24, 24), SMALL)


def test_gpus_that_no_type_fits() -> None:
    with pytest.raises(DoesNotFitError, match=r"all in its smallest types does not fit mine.*too"):
        plan_levels(recipe({"name": "all"}), target(20), FLAGSHIP)


def test_allocation_json_predicts_a_kld_only_where_costs_were_measured() -> None:
    errors = nominal_costs(SMALL, MeasureRecipe(candidates=("Q8_0", "Q5_0", "Q4_0")))
    costs = {n: {kind: 7 * error for kind, error in kinds.items()} for n, kinds in errors.items()}

    def units_with(*klds: float) -> tuple[UnitCost, ...]:
        return tuple(
            UnitCost((name,), (Probe({name: "Q4_0"}, {name: 1.0}, {name: 1.0}, 7.0, klds),))
            for name in errors
        )

    units = units_with(6.0, 8.0)
    levels = recipe({"name": "bits", "bits_per_weight": 6}, {"name": "stock", "preset": "Q4_K_S"})
    plans, _ = plan_levels(levels, target(24), SMALL)
    for plan in plans:
        found = fit(plan, SMALL, costs, target(24)).allocation
        for kept in (units, units_with(7.0), ()):
            measured = Sensitivity(errors=errors, costs=kept)
            content = AllocationFile.of(found, SMALL.tensors, measured)
            assert AllocationFile.parse(content.text().encode(), "it") == content
            types = content.types
            assert types == found.types
            assert content.total_bytes == file_bytes(SMALL, types)
            own = plan.stock is None
            assert (content.predicted_kld is None) is not (own and bool(measured.costs))
            assert (content.summed_relative_error is None) is not own  # Q4_K has no error here
            assert (content.optimality_gap is None) is not own
            assert content.preset == plan.recipe.preset
            fell_back = set() if own else {n for n in types if "ffn_down_exps" in n}
            assert set(content.fallbacks) == fell_back
            if content.predicted_kld is not None:
                relative = sum(errors[n][types[n]] for n in errors)
                assert content.summed_relative_error == pytest.approx(relative)
                assert content.predicted_kld == pytest.approx(7 * relative)
            expected = None
            if own and measured.costs == units:
                expected = pytest.approx(relative)  # all are dear on the same chunk
            assert content.predicted_kld_error == expected
