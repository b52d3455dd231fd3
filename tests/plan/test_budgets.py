"""What each target holds of a model: one ask for all, and what a plan of the target says too."""

from __future__ import annotations

import dataclasses

import flagship
import pytest

from quantkit.config.levels import LevelRecipe
from quantkit.config.recipe import MeasureRecipe, Recipe
from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.errors import EnvironmentFault, InputError
from quantkit.core.progress import Progress
from quantkit.core.units import GIB
from quantkit.formats.tensors import MetaValue
from quantkit.llamacpp import memory_plan as native_memory
from quantkit.llamacpp.devices import Devices
from quantkit.llamacpp.memory_plan import Question, ask_memory
from quantkit.models.choose import choose_model, open_source
from quantkit.models.model import Model
from quantkit.plan.allowed_types import smallest_types
from quantkit.plan.level_plans import nominal_costs
from quantkit.plan.llama_memory import (
    MOST_GPUS,
    buffers_of,
    even_counts,
    gpu_memories,
)
from quantkit.plan.placement import place
from quantkit.plan.plan import plan_recipe
from quantkit.plan.what_if import BUDGET_CONTEXTS, TargetBudgets, budgets_of, contexts_for

FLAGSHIP = flagship.model()
COSTS = flagship.costs()
MAX = Recipe(name="r", levels=(LevelRecipe(name="max"),))


def demo() -> Model:
    source = open_source(choose_model("demo"))
    return Model.of("demo", source)


def gpus(count: int, gib: float, **fields: object) -> Target:
    spec = GPUSpec(name=f"{gib:g} GiB", memory_gib=gib, count=count)
    given = {"name": f"{count}x{gib:g}", "gpus": (spec,), "context_tokens": 4096, **fields}
    return Target.model_validate(given)


def trained_for(model: Model, tokens: int) -> Model:
    key = f"{model.geometry.architecture}.context_length"
    return dataclasses.replace(model, metadata={**model.metadata, key: MetaValue("u32", tokens)})


def sizes(found: TargetBudgets) -> list[int | None]:
    assert list(found.budgets) == list(BUDGET_CONTEXTS)
    return list(found.budgets.values())


class Counted(Progress):
    total = done = 0.0

    def start(self, total: float, unit: str, what: str = "", done: float = 0) -> None:
        self.total = total

    def advance(self, amount: float) -> None:
        self.done += amount


def test_targets_of_other_gpus_are_asked_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every memory is what llama.cpp says of the target alone, on GPUs of its own sizes."""
    model = demo()
    targets = [
        gpus(1, 24),
        gpus(2, 12, kv_type="f16"),
        gpus(1, 80),
        gpus(2, 48, ubatch_tokens=1024),
        Target(
            name="unequal",
            gpus=(GPUSpec(name="a", memory_gib=40), GPUSpec(name="b", memory_gib=8)),
            context_tokens=65_536,
        ),
        gpus(3, 16),
    ]
    alone = []
    for target in targets:
        counts = even_counts(len(model.geometry.layers) + 1, len(target.each_gpu))
        run = target.run.within(model.geometry.trained_context_tokens)
        ((answer,),) = ask_memory(
            [Question(model, Devices("cuda", target.gpu_bytes), counts, (run,))]
        )
        alone.append(buffers_of(answer, counts))
    asked = []
    of_files = native_memory.ask_of_files
    monkeypatch.setattr(native_memory, "_answers", {})
    monkeypatch.setattr(
        native_memory,
        "ask_of_files",
        lambda questions: asked.append(questions) or of_files(questions),
    )
    memories, why = gpu_memories(model, targets)
    assert why is None
    assert [memory.compute for memory in memories] == alone
    assert len(set(alone)) == 5  # what differs between them is told apart
    (questions,) = asked  # one process
    assert [len(q.tensor_split) for q in questions] == [1, 2, 3]  # and a model for each
    assert [memory.capacity for memory in memories][4] == (40 * GIB, 8 * GIB)


def test_llama_cpp_takes_as_many_gpus_as_are_let_through() -> None:
    """Of a model with layers for all of them: GPUs without layers do not count."""

    def question(count: int) -> Question:
        target = gpus(count, 24)
        counts = even_counts(len(FLAGSHIP.geometry.layers) + 1, count)
        return Question(FLAGSHIP, Devices("cuda", target.gpu_bytes), counts, (target.run,))

    ask_memory([question(MOST_GPUS)])
    with pytest.raises(EnvironmentFault, match="GGML_SCHED_MAX_BACKENDS"):
        ask_memory([question(MOST_GPUS + 1)])
    with pytest.raises(InputError, match=r"target 16x24 has 16 GPUs, .*at most 15"):
        gpu_memories(FLAGSHIP, [gpus(16, 24)])


def test_the_flagship_s_budgets_are_what_plans_say() -> None:
    """A plan finds the best types and asks llama.cpp for its cut: the size is as good as equal."""
    names = ("4x3090", "2x3090", "1xH100", "8x3090")
    mine = gpus(3, 24, name="mine", kv_type="f16", layers="in_order", ubatch_tokens=1024)
    targets = [*map(load_target, names), mine]
    found, why = budgets_of(FLAGSHIP, COSTS, targets)
    assert why is None
    assert [one.target for one in found] == targets
    by_name = {one.target.name: sizes(one) for one in found}
    for name, context in (("4x3090", 516_096), ("mine", 131_072)):
        (target,) = (one for one in targets if one.name == name)
        changed = target.changed(context_tokens=context, weight_budget_gib="auto")
        (entry,) = plan_recipe(MAX, changed, FLAGSHIP, 1 << 20).entries
        budget = by_name[name][BUDGET_CONTEXTS.index(context)]
        assert budget is not None
        assert 0.995 * entry.total_bytes < budget <= 1.0005 * entry.total_bytes
    assert [size is None for size in by_name["2x3090"]] == [False, False, True, True]
    target = load_target("2x3090").changed(context_tokens=516_096)
    smallest = smallest_types(FLAGSHIP.tensors, COSTS, MAX.levels[0])
    (memory,), _ = gpu_memories(FLAGSHIP, [target])
    assert not place(FLAGSHIP.tensors, smallest, memory).fits
    # the published target allows 71 GiB of weights; its GPUs hold more, and less at 1M
    at_504k, at_1m = by_name["4x3090"][2:]
    assert at_504k > 78 * GIB > 71 * GIB > at_1m > 66 * GIB
    # the largest types of every tensor: longer contexts take nothing from it
    assert len(set(by_name["8x3090"])) == 1


def test_a_larger_cache_leaves_less() -> None:
    targets = [gpus(2, 48, kv_type=kind) for kind in ("q4_0", "q8_0", "f16")]
    found, _ = budgets_of(FLAGSHIP, COSTS, targets)
    for column in list(zip(*map(sizes, found), strict=True))[2:]:
        assert column[0] > column[1] > column[2]
    for one in found:
        largest = sizes(one)
        assert largest == sorted(largest, reverse=True)
        assert len(set(largest)) == len(BUDGET_CONTEXTS)


def test_targets_that_cannot_run_the_model_do_not_spoil_the_others() -> None:
    model = demo()
    drafting = gpus(2, 24, draft="mtp")
    targets = [gpus(1, 24), gpus(16, 24), drafting, gpus(2, 0.6)]
    progress = Counted()
    found, why = budgets_of(model, nominal_costs(model, MeasureRecipe()), targets, progress)
    assert why is None
    assert [one.target.name for one in found] == ["1x24", "16x24", "2x24", "2x0.6"]
    first, many, drafts, small = found
    assert first.refused is None
    assert all(sizes(first))
    assert many.refused is not None
    assert "target 16x24 has 16 GPUs" in many.refused
    assert drafts.refused is not None
    assert "prediction layers" in drafts.refused
    assert sizes(many) == sizes(drafts) == [None] * 4
    assert small.refused is None
    assert sizes(small)[3] is None
    assert progress.done == progress.total == 8


def test_contexts_are_those_that_the_model_was_trained_for() -> None:
    model = demo()
    assert contexts_for(model) == BUDGET_CONTEXTS
    assert contexts_for(trained_for(model, 1_048_575)) == BUDGET_CONTEXTS[:3]
    assert contexts_for(trained_for(model, 262_144)) == (32_768, 131_072)
    assert contexts_for(trained_for(model, 32_768)) == (32_768,)
    assert contexts_for(trained_for(model, 8192)) == (8192,)
    short = trained_for(model, 8192)
    costs = nominal_costs(short, MeasureRecipe())
    (one,), _ = budgets_of(short, costs, [gpus(1, 24, context_tokens=131_072)])
    assert list(one.budgets) == [8192]
