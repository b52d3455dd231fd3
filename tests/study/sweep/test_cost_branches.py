"""Branches: which are run, on how much text, and what becomes of their KLDs."""

from __future__ import annotations

import flagship
import numpy as np
import pytest
from models import llama_metadata

from quantkit.config.recipe import MeasureRecipe
from quantkit.formats.tensors import Metadata, MetaValue, TensorInfo
from quantkit.models.choose import choose_model, open_source
from quantkit.models.model import Model
from quantkit.study.sweep.branches import (
    Branch,
    Exchanged,
    active_elements,
    chosen_cost_tokens,
    measurable_units,
    plan_branches,
    unit_costs,
)
from quantkit.study.sweep.cuts import cut

A, B = "blk.0.attn_q.weight", "blk.3.attn_q.weight"


def exchanged(name: str, error: float) -> Exchanged:
    return Exchanged({name: "Q4_0"}, {name: 1.0}, {name: error})


def test_the_flagship_gets_the_most_tokens() -> None:
    model, recipe = flagship.model(), MeasureRecipe()
    branches = len(plan_branches(measurable_units(cut(model), model, recipe), recipe))
    assert 340 < branches < 370
    assert active_elements(model.metadata, model.tensors) == pytest.approx(
        12.7e9, rel=0.02
    )  # its name says A12B
    assert chosen_cost_tokens(recipe, model, branches) == 4096
    assert chosen_cost_tokens(recipe, model, 2 * branches) == 2048
    assert chosen_cost_tokens(recipe, model, 1000 * branches) == 512


def test_a_recipe_s_tokens_are_taken_as_whole_chunks() -> None:
    model = Model.of("demo", open_source(choose_model("demo")))
    for tokens, chosen in ((1024, 1024), (100, 128), (0, 0)):  # as --cost-tokens gives them
        recipe = MeasureRecipe().model_copy(update={"cost_tokens": tokens})
        assert chosen_cost_tokens(recipe, model, 38) == chosen
    long = MeasureRecipe(cost_chunk_tokens=8192)
    assert chosen_cost_tokens(long, model, 38) == 8192


@pytest.mark.parametrize(
    ("used", "active"), [(2, 64 + 2 * 32), ((2, 3), 64 + 3 * 32), (9, 64 + 4 * 32), ("2", 64)]
)
def test_of_experts_those_that_are_used_count(
    used: int | str | tuple[int, ...], active: int
) -> None:
    kind = "str" if isinstance(used, str) else "u32"
    kept = MetaValue(kind, used)
    metadata: Metadata = llama_metadata() | {"llama.expert_used_count": kept}
    tensors = (
        TensorInfo("blk.0.attn_q.weight", (8, 8), "F32"),
        TensorInfo("blk.0.ffn_up_exps.weight", (4, 4, 8), "F32"),
    )
    assert active_elements(metadata, tensors) == active


def test_a_unit_s_cost_keeps_its_chunks() -> None:
    branches = [Branch((A,), 4.5, 0.02), Branch((B,), 4.5, 0.02), Branch((), 4.5, 0.0, "null")]
    klds = {0: np.array([1.0, 3.0, 5.0, 7.0, 2.0, 2.0]), 1: np.ones(6), 2: np.zeros(6)}
    given = {0: exchanged(A, 0.01), 1: Exchanged(), 2: Exchanged()}
    (found,) = unit_costs(branches, given, klds, 2)  # B was exchanged nowhere
    assert found.tensors == (A,)
    (probe,) = found.probes
    assert probe.chunk_klds == (2.0, 6.0, 2.0)
    assert probe.kld == pytest.approx(10 / 3)
    assert probe.standard_error == pytest.approx(4 / 3)  # the sd of 2, 6, 2 is 4 / √3
    assert found.floor == 0


def test_floors_are_interpolated_by_layer() -> None:
    units = [(A,), (B,), ("blk.6.attn_q.weight",), ("token_embd.weight",), ("output.weight",)]
    probes = [Branch(unit, 4.5, 0.02) for unit in units]
    floors = [Branch(unit, 4.5, 3e-6, "floor") for unit in (units[0], units[2])]
    branches = [*probes, *floors]
    given = {
        index: exchanged(branch.unit[0], 0.01 if branch.kind == "probe" else 3e-6)
        for index, branch in enumerate(branches)
    }
    klds = {index: np.full(4, 1.0) for index in range(5)} | {5: np.full(4, 0.3), 6: np.full(4, 0.1)}
    found = {unit.tensors[0]: unit.floor for unit in unit_costs(branches, given, klds, 4)}
    assert list(found.values()) == pytest.approx([0.3, 0.2, 0.1, 0.3, 0.1])
