"""Costs from probes, units from groups, and sensitivity.json."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest

from quantkit.core.errors import InputError
from quantkit.study.sensitivity import Estimate, Probe, Sensitivity, UnitCost, total, units_of

A, B, C = "blk.0.attn_q.weight", "blk.0.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"


def probe(error: float, *klds: float, names: tuple[str, ...] = (A,)) -> Probe:
    """A probe with these KLDs of the chunks, whose tensors share the error."""
    types, gains = dict.fromkeys(names, "Q4_0"), dict.fromkeys(names, 1.0)
    return Probe(types, gains, {n: error / len(names) for n in names}, fmean(klds), klds)


def unit(
    *probes: tuple[float, float], names: tuple[str, ...] = (A,), floor: float = 0.0
) -> UnitCost:
    """A unit with each (error, KLD), the KLD of two chunks with a standard error of 1 %."""
    found = [probe(e, 0.99 * kld, 1.01 * kld, names=names) for e, kld in probes]
    return UnitCost(names, tuple(found), floor)


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
    found = Sensitivity(errors={}, costs=units).dearest()
    assert [(name, cost.mean, cost.standard_error) for name, cost in found] == [
        (f"{B} and 1 more", pytest.approx(0.1), pytest.approx(0.001)),
        (A, pytest.approx(0.002), pytest.approx(2e-5)),
    ]


# --- standard errors ------------------------------------------------------------------------------

CHUNKS = np.random.default_rng(1).gamma(2.0, 0.01, (3, 16))
"""KLDs of three units at an error of 0.01, on 16 chunks: those of one text, so some are harder."""
CHUNKS *= np.geomspace(0.2, 5, 16)


def standard_error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(values.size))


def measured(names: tuple[str, ...] = (A, B, C)) -> Sensitivity:
    costs = [
        UnitCost((name,), (probe(0.01, *klds, names=(name,)),))
        for name, klds in zip(names, CHUNKS.tolist(), strict=False)
    ]
    kinds = {"Q8_0": 1e-3, "Q4_0": 1e-2, "Q2_K": 3e-2}
    return Sensitivity(errors=dict.fromkeys(names, kinds), costs=tuple(costs))


def test_the_chunks_are_the_sample() -> None:
    klds = [0.1, 0.2, 0.6]
    assert probe(0.01, *klds).standard_error == pytest.approx(standard_error(np.array(klds)))
    assert probe(0.01, 0.1).standard_error == 0
    assert Estimate(0.1, (0.0,)).known_error is None  # one chunk does not say
    assert Estimate(0.1, (0.0, 0.0)).known_error == 0


def test_a_cost_s_error_is_in_proportion_between_probes() -> None:
    found = UnitCost((A,), (probe(0.01, 1.0, 3.0), probe(0.03, 8.0, 4.0)))
    assert found.at(0.01).deviations == pytest.approx((-1, 1))
    assert found.at(0.005).deviations == pytest.approx((-0.5, 0.5))
    assert found.at(0.02).deviations == pytest.approx((0.5, -0.5))
    assert found.at(0.06).standard_error == pytest.approx(2 * found.at(0.03).standard_error)
    assert found.at(0.03).standard_error == pytest.approx(standard_error(np.array([8.0, 4.0])))


def test_a_prediction_s_error_is_that_of_its_sum_on_each_chunk() -> None:
    errors = {A: ("Q8_0", 0.1), B: ("Q4_0", 1.0), C: ("Q2_K", 3.0)}
    found = measured().predicted({name: kind for name, (kind, _) in errors.items()})
    assert found is not None
    sums = sum(times * klds for (_, times), klds in zip(errors.values(), CHUNKS, strict=True))
    assert found.mean == pytest.approx(sums.mean())
    assert found.standard_error == pytest.approx(standard_error(sums))
    apart = [
        times * standard_error(k) for (_, times), k in zip(errors.values(), CHUNKS, strict=True)
    ]
    assert found.standard_error > 1.1 * np.linalg.norm(apart)  # chunks are hard for all of them


def test_a_prediction_is_the_sum_of_the_tensors_costs() -> None:
    other = "blk.9.attn_q.weight"  # no graph showed it: as the others of its kind
    known = measured()
    found = known.model_copy(update={"errors": known.errors | {other: known.errors[A]}})
    costs = found.tensor_costs()
    types = {A: "Q4_0", B: "Q2_K", other: "Q2_K"}
    predicted = found.predicted({**types, C: "F16", "output_norm.weight": "F32"})
    assert predicted is not None
    assert predicted.mean == pytest.approx(sum(costs[name][kind] for name, kind in types.items()))
    sums = (1 + 3) * CHUNKS[0] + 3 * CHUNKS[1]
    assert predicted.standard_error == pytest.approx(standard_error(sums))
    group = UnitCost((B, C), (probe(0.02, *CHUNKS[0].tolist(), names=(B, C)),))
    both = Sensitivity(errors={B: {"Q4_0": 0.01}, C: {"Q4_0": 0.01}}, costs=(group,))
    predicted = both.predicted({B: "Q4_0", C: "Q4_0"})
    assert predicted is not None
    assert predicted.standard_error == pytest.approx(standard_error(CHUNKS[0]))


def test_nothing_is_predicted_of_what_was_not_measured() -> None:
    assert Sensitivity(errors={A: {"Q4_0": 0.01}}).predicted({A: "Q4_0"}) is None
    assert total([]) == Estimate(0.0)
    assert total([Estimate(1.0), Estimate(2.0, (0.5, -0.5))]) == Estimate(3.0, (0.5, -0.5))


# --- units ----------------------------------------------------------------------------------------


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
    content = json.loads(path.read_text())
    for version in (None, 1):  # of files before they had one, and of standard errors of positions
        content["version"] = version
        earlier = {key: value for key, value in content.items() if value is not None}
        path.write_text(json.dumps(earlier))
        with pytest.raises(InputError, match="format version"):
            Sensitivity.read(path)


def test_probes_of_different_texts_are_damage(tmp_path: Path) -> None:
    one, two = unit((0.01, 0.002)), UnitCost((B,), (probe(0.01, 0.1, 0.2, 0.3, names=(B,)),))
    errors = {A: {"Q4_0": 1e-2}, B: {"Q4_0": 1e-2}}
    with pytest.raises(ValueError, match="chunks"):
        Sensitivity(errors=errors, costs=(one, two))
    path = tmp_path / "sensitivity.json"
    Sensitivity(errors=errors, costs=(one,)).write(path)
    content = json.loads(path.read_text())
    content["costs"][0]["probes"][0]["chunk_klds"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="chunk_klds"):
        Sensitivity.read(path)
