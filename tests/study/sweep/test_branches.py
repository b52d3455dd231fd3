"""Branches: what is run for which unit, and what its cost is."""

from __future__ import annotations

import flagship
import numpy as np
import pytest
from models import VOCABULARY, llama_arrays, llama_metadata

from quantkit.config.recipe import MeasureRecipe
from quantkit.formats.tensors import MetaValue, TensorInfo
from quantkit.models.model import Model
from quantkit.study.sweep.branches import (
    COST_FLOP,
    FLOOR_PROBES,
    LEAST_COST_TOKENS,
    MAX_GAIN,
    MOST_COST_TOKENS,
    TINY_ERROR,
    Branch,
    Exchanged,
    active_elements,
    choose_gains,
    choose_types,
    chosen_cost_tokens,
    layer_of,
    plan_branches,
    unit_costs,
)

RECIPE = MeasureRecipe(candidates=("Q8_0", "Q4_0"), probe_bits=(4.5, 8.5), probe_error=0.02)
Q, OUTPUT, EMBEDDING = "blk.0.attn_q.weight", "output.weight", "token_embd.weight"


def units(*layers: int) -> list[tuple[str, ...]]:
    return [(f"blk.{layer}.{name}.weight",) for layer in layers for name in ("attn_q", "attn_k")]


def test_each_unit_has_a_branch_for_each_probe() -> None:
    every = [(EMBEDDING,), *units(*range(12)), (OUTPUT,)]
    branches = plan_branches(every, RECIPE)
    probes = [branch for branch in branches if branch.kind == "probe"]
    assert [(b.unit, b.bits) for b in probes] == [(u, bits) for u in every for bits in (4.5, 8.5)]
    assert {branch.error for branch in probes} == {0.02}
    assert branches[: len(probes)] == probes
    assert branches[-1] == Branch((), 4.5, 0.0, "null")
    floors = branches[len(probes) : -1]
    assert {branch.kind for branch in floors} == {"floor"}
    assert {branch.error for branch in floors} == {TINY_ERROR}
    layers = [layer_of(branch.unit) for branch in floors]
    assert len(layers) == FLOOR_PROBES
    assert (layers[0], layers[-1]) == (0, 11)


def test_floors_of_few_units() -> None:
    alone = plan_branches([(EMBEDDING,)], RECIPE)
    assert [branch.kind for branch in alone] == ["probe", "probe", "null"]
    two = plan_branches(units(3), RECIPE)
    assert sorted(b.unit for b in two if b.kind == "floor") == sorted(units(3))


def test_layers_of_units() -> None:
    assert layer_of(("blk.12.ffn_up.weight", "blk.3.ffn_up.weight")) == 12
    assert layer_of((OUTPUT,)) is None


def test_the_nearest_type_with_an_error_to_measure() -> None:
    infos = [TensorInfo(name, (32, 256), "BF16") for name in (Q, OUTPUT)]
    errors = {Q: {"Q8_0": 1e-5, "Q4_0": 1e-2, "Q4_K": 0.0}, OUTPUT: {"Q8_0": 1e-5}}
    of = Branch((Q,), 4.5, 0.02)
    assert choose_types(of, infos, errors, 0.02) == {Q: "Q4_0"}  # not Q4_K, which loses nothing
    assert choose_types(Branch((Q,), 8.5, 0.02), infos, errors, 0.02) == {Q: "Q4_0"}
    # where no error is large enough, the largest
    assert choose_types(Branch((OUTPUT,), 4.5, 0.02), infos, errors, 0.02) == {OUTPUT: "Q8_0"}
    assert choose_types(Branch((OUTPUT,), 8.5, 4e-4), infos, errors, 4e-4) == {OUTPUT: "Q8_0"}
    both = Branch((Q, OUTPUT), 8.5, 4e-4)
    assert choose_types(both, infos, errors, 4e-4) == {Q: "Q8_0", OUTPUT: "Q8_0"}


def test_errors_are_amplified_to_the_same_size() -> None:
    errors = {Q: {"Q8_0": 5e-3, "Q4_0": 0.08, "Q4_K": 0.0}}

    def gain(kind: str, error: float, of: str = "probe") -> float:
        branch = Branch((Q,), 4.5, error, of)  # type: ignore[arg-type]
        return choose_gains(branch, {Q: kind}, errors)[Q]

    assert gain("Q8_0", 0.02) == pytest.approx(2)
    assert gain("Q8_0", 0.5) == MAX_GAIN
    assert gain("Q4_0", 0.02) == 1  # a probe is not made smaller
    assert gain("Q4_0", 0.02, "floor") == pytest.approx(0.5)
    assert gain("Q4_K", 0.02) == 1


def exchanged(unit: tuple[str, ...], error: float) -> Exchanged:
    return Exchanged(
        dict.fromkeys(unit, "Q4_0"), dict.fromkeys(unit, 1.5), dict.fromkeys(unit, error)
    )


def test_costs_are_means_over_the_text() -> None:
    pair = ("blk.0.a.weight", "blk.1.a.weight")
    branches = [
        Branch(pair, 4.5, 0.02), Branch(pair, 8.5, 0.02), Branch((OUTPUT,), 4.5, 0.02),
        Branch((Q,), 4.5, 0.02), Branch((), 4.5, 0.0, "null"),
    ]  # fmt: skip
    found = {0: exchanged(pair, 0.02), 1: exchanged(pair, 0.01), 2: exchanged((OUTPUT,), 0.03)}
    found |= {3: Exchanged(), 4: Exchanged()}  # Q could not be exchanged
    klds = {index: np.arange(6.0) + index for index in range(5)}
    costs = unit_costs(branches, found, klds, 3)
    assert [cost.tensors for cost in costs] == [pair, (OUTPUT,)]
    first, second = costs[0].probes
    assert (first.kld, second.kld) == (2.5, 3.5)
    assert first.chunk_klds == (1.0, 4.0)
    assert first.types == dict.fromkeys(pair, "Q4_0")
    assert first.gains == dict.fromkeys(pair, 1.5)
    assert first.error == pytest.approx(0.04)  # of the whole unit
    assert costs[1].probes[0].chunk_klds == (3.0, 6.0)
    assert {cost.floor for cost in costs} == {0.0}


def test_a_unit_of_which_a_part_was_not_exchanged_has_no_cost() -> None:
    pair = ("blk.0.a.weight", "blk.1.a.weight")
    found = {0: exchanged(pair[:1], 0.02)}
    assert not unit_costs([Branch(pair, 4.5, 0.02)], found, {0: np.ones(4)}, 2)


def test_floors_are_interpolated_by_layer() -> None:
    names = [f"blk.{layer}.a.weight" for layer in range(5)]
    probes = [Branch((name,), 4.5, 0.02) for name in (EMBEDDING, *names, OUTPUT)]
    floors = [Branch((names[layer],), 4.5, TINY_ERROR, "floor") for layer in (4, 0, 2)]
    branches = [*probes, *floors]
    found = {n: exchanged(b.unit, 0.02) for n, b in enumerate(probes)}
    at = {4: (TINY_ERROR, 1.0), 0: (TINY_ERROR, 3.0), 2: (20 * TINY_ERROR, 9.0)}
    for number, branch in enumerate(floors, len(probes)):
        error, _ = at[layer_of(branch.unit) or 0]
        found[number] = exchanged(branch.unit, error)
    klds = {n: np.full(4, 5.0) for n in range(len(probes))}
    klds |= {n: np.full(4, at[layer_of(b.unit) or 0][1]) for n, b in enumerate(floors, len(probes))}
    costs = {cost.tensors[0]: cost.floor for cost in unit_costs(branches, found, klds, 4)}
    # that of layer 2 was no negligible change
    assert [costs[name] for name in names] == [3.0, 2.5, 2.0, 1.5, 1.0]
    assert (costs[EMBEDDING], costs[OUTPUT]) == (3.0, 1.0)


def test_a_unit_exchanged_in_several_windows() -> None:
    both = exchanged((Q,), 0.1)
    both.add(exchanged((OUTPUT,), 0.2))
    assert both.errors == {Q: 0.1, OUTPUT: 0.2}
    assert both.types.keys() == both.gains.keys() == {Q, OUTPUT}


def test_active_weights_are_those_of_the_experts_that_are_used() -> None:
    dense = [TensorInfo(n, a.shape, "BF16") for n, a in llama_arrays().items()]
    total = sum(info.elements for info in dense)
    assert active_elements(llama_metadata(), dense) == total
    experts = TensorInfo("blk.0.ffn_up_exps.weight", (8, 4, VOCABULARY), "BF16")
    used = {"llama.expert_used_count": MetaValue("u32", 3)}
    model = Model("tiny", llama_metadata() | used, [*dense, experts])
    assert active_elements(model.metadata, model.tensors) == total + 3 * 4 * VOCABULARY
    by_layer = {"llama.expert_used_count": MetaValue("u32", (0, 2))}
    model = Model("tiny", llama_metadata() | by_layer, [*dense, experts])
    assert active_elements(model.metadata, model.tensors) == total + 2 * 4 * VOCABULARY
    large = flagship.model()
    assert 11e9 < active_elements(large.metadata, large.tensors) < 14e9  # "120B-A12B"


def test_as_many_cost_tokens_as_a_model_can_afford() -> None:
    dense = [TensorInfo(n, a.shape, "BF16") for n, a in llama_arrays().items()]
    tiny = Model("tiny", llama_metadata(), dense)
    assert chosen_cost_tokens(RECIPE, tiny, 10) == MOST_COST_TOKENS
    many = int(COST_FLOP / active_elements(tiny.metadata, tiny.tensors) / MOST_COST_TOKENS * 3)
    assert chosen_cost_tokens(RECIPE, tiny, many) == MOST_COST_TOKENS // 4
    assert chosen_cost_tokens(RECIPE, tiny, 10**6 * many) == LEAST_COST_TOKENS
    chosen = RECIPE.model_copy(update={"cost_tokens": 0})
    assert chosen_cost_tokens(chosen, tiny, 10) == 0
