"""Costs from probes, units from groups, and sensitivity.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantkit.study.sensitivity import Probe, Sensitivity, UnitCost, units_of

A, B, C = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"


def unit(
    *probes: tuple[float, float], names: tuple[str, ...] = (A,), floor: float = 0.0
) -> UnitCost:
    """A unit whose tensors share each (error, KLD)."""
    types, gains = dict.fromkeys(names, "Q4_0"), dict.fromkeys(names, 1.0)
    return UnitCost(
        names,
        tuple(
            Probe(types, gains, {n: e / len(names) for n in names}, kld, 0.01 * kld)
            for e, kld in probes
        ),
        floor,
    )


@pytest.mark.parametrize(
    ("probes", "floor", "error", "cost"),
    [
        ([(0.01, 0.002)], 0, 0.03, 0.006),  # a straight line
        ([(0.01, 0.002)], 0, 0, 0),
        ([(0.01, 0.002)], 0.0015, 0.01, 0.0005),  # the floor is no part of the cost
        ([(0.01, 0.002)], 0.0015, 0.03, 0.0015),
        ([(0.01, 0.002)], 0.0025, 0.01, 0.01 * 0.002),  # less than its error was not measured
        ([(0.04, 0.006), (0.01, 0.002)], 0, 0.005, 0.001),  # two lines
        ([(0.04, 0.006), (0.01, 0.002)], 0, 0.01, 0.002),
        ([(0.04, 0.006), (0.01, 0.002)], 0, 0.025, 0.004),
        ([(0.04, 0.006), (0.01, 0.002)], 0, 0.04, 0.006),
        ([(0.04, 0.006), (0.01, 0.002)], 0, 0.08, 0.012),
    ],
)
def test_costs_are_lines_through_the_probes(
    probes: list[tuple[float, float]], floor: float, error: float, cost: float
) -> None:
    assert unit(*probes, floor=floor).cost(error) == pytest.approx(cost)


def test_a_larger_error_never_costs_less() -> None:
    found = unit((0.01, 0.002), (0.02, 1e-6))
    costs = [found.cost(0.001 * 2**step) for step in range(8)]
    assert costs == sorted(costs)
    assert costs[0] > 0


def test_costs_of_every_tensor_and_type() -> None:
    errors = {A: {"Q8_0": 1e-5, "Q4_0": 1e-2}, B: {"Q4_0": 2e-2}}
    other = "blk.9.attn_q.weight"  # no graph showed it: as the others of its kind
    found = Sensitivity(
        errors={**errors, other: {"Q4_0": 1e-2}},
        costs=(unit((0.01, 0.002)), unit((0.02, 0.1), names=(B,))),
    ).tensor_costs()
    assert found[A] == pytest.approx({"Q8_0": 2e-6, "Q4_0": 2e-3})
    assert found[B] == pytest.approx({"Q4_0": 0.1})
    assert found[other] == pytest.approx({"Q4_0": 2e-3})


def test_a_group_adds_up_to_what_was_measured() -> None:
    together = unit((0.04, 0.2), names=(B, C))
    errors = {B: {"Q4_0": 0.02}, C: {"Q4_0": 0.02}}
    found = Sensitivity(errors=errors, costs=(together,)).tensor_costs()
    assert found[B]["Q4_0"] + found[C]["Q4_0"] == pytest.approx(0.2)


def test_the_dearest_first() -> None:
    units = (unit((0.01, 0.002)), unit((0.04, 0.2), names=(B, C)))
    names = Sensitivity(errors={}, costs=units).dearest()
    assert names == [(f"{B} and 1 more", pytest.approx(0.1)), (A, pytest.approx(0.002))]


def test_without_measured_costs_errors_count_alike() -> None:
    errors = {A: {"Q4_0": 1e-2}, B: {"Q4_0": 2e-2}}
    assert Sensitivity(errors=errors).tensor_costs() == errors


def test_units_of_groups() -> None:
    names = ["token_embd.weight", A, B, C, "blk.1.attn_q.weight", "blk.1.ffn_up_exps.weight"]
    assert units_of(names, ()) == [(name,) for name in names]
    groups = (r"blk\.(\d+)\.ffn_(?:up|down)_exps",)
    assert units_of(names, groups) == [
        ("token_embd.weight",), (A,), (B, C), ("blk.1.attn_q.weight",),
        ("blk.1.ffn_up_exps.weight",),
    ]  # fmt: skip


def test_the_file_holds_all_that_allocation_needs(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    costs = (unit((0.01, 0.002), (0.04, 0.006)),)
    written = Sensitivity(errors={A: {"Q4_0": 1e-2}}, costs=costs, cost_tokens=1024)
    written.write(path)
    assert Sensitivity.read(path) == written
    earlier = json.loads(path.read_text())
    del earlier["version"]  # measured for hours before files had one
    path.write_text(json.dumps(earlier))
    assert Sensitivity.read(path) == written
