"""Allocation against brute force, and its promises: never over budget, never a fallback."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.errors import DoesNotFitError, InputError
from quantkit.quant_types import BY_NAME
from quantkit.stages.allocate import allocate, smallest_bytes
from quantkit.values import TensorInfo

TYPES = ("Q8_0", "Q5_0", "Q4_0", "IQ4_NL", "MXFP4")


def size(info: TensorInfo, kind: str) -> int:
    return -(-BY_NAME[kind].size_bytes(info.elements) // 32) * 32


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[TensorInfo], dict[str, dict[str, float]], int]:
    count = draw(st.integers(1, 4))
    infos = [
        TensorInfo(
            f"blk.{i}.w.weight", (draw(st.integers(1, 40)), 32 * draw(st.integers(1, 9))), "BF16"
        )
        for i in range(count)
    ]
    error = st.floats(1e-6, 1.0, allow_nan=False)
    errors = {i.name: {k: draw(error) for k in TYPES} for i in infos}
    low = sum(min(size(i, k) for k in TYPES) for i in infos)
    high = sum(max(size(i, k) for k in TYPES) for i in infos)
    return infos, errors, draw(st.integers(low, high + 64))


@given(cases())
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(
    case: tuple[list[TensorInfo], dict[str, dict[str, float]], int],
) -> None:
    infos, errors, budget = case
    found = allocate(infos, errors, budget, 0, {})
    assert found.total_bytes <= budget
    assert found.total_bytes == sum(size(i, found.types[i.name]) for i in infos)
    best = min(
        sum(errors[i.name][k] for i, k in zip(infos, choice, strict=True))
        for choice in itertools.product(TYPES, repeat=len(infos))
        if sum(size(i, k) for i, k in zip(infos, choice, strict=True)) <= budget
    )
    assert found.summed_error <= best * (1 + 1e-5)


INFO = TensorInfo("blk.0.ffn_down_exps.weight", (4, 8, 288), "BF16")
KEPT = TensorInfo("blk.0.attn_norm.weight", (288,), "F32")


def test_too_small_a_budget_says_by_how_much() -> None:
    errors = {INFO.name: {"Q8_0": 0.1, "Q4_0": 0.5}}
    need = size(INFO, "Q4_0") + 4 * 288
    assert smallest_bytes([INFO, KEPT], errors, {}) == need
    assert allocate([INFO, KEPT], errors, need, 0, {}).total_bytes == need
    with pytest.raises(DoesNotFitError, match=r"too small by 0\.00 MiB.*choose a larger target"):
        allocate([INFO, KEPT], errors, need - 1, 0, {})


def test_minimum_holds_and_a_minimum_without_candidates_is_named() -> None:
    errors = {INFO.name: {"Q8_0": 0.1, "Q4_0": 0.5}}
    found = allocate([INFO], errors, 10**6, 0, {"ffn_down": "Q5_0"})
    assert found.types[INFO.name] == "Q8_0"
    with pytest.raises(InputError, match="ffn_down_exps"):
        allocate([INFO], {INFO.name: {"Q4_0": 0.5}}, 10**6, 0, {"ffn_down": "Q8_0"})


def test_tensors_that_were_not_measured_keep_their_type() -> None:
    found = allocate([KEPT, INFO], {INFO.name: {"Q8_0": 0.1}}, 10**6, 0, {})
    assert found.types[KEPT.name] == "F32"
    assert list(found.types) == [KEPT.name, INFO.name]


def test_row_lengths_that_rule_types_out_are_reported() -> None:
    found = allocate([INFO], {INFO.name: {"Q8_0": 0.1}}, 10**6, 0, {})
    assert "Q4_K" in found.infeasible[INFO.name]
    assert "Q5_0" not in found.infeasible[INFO.name]
