"""Floors and pins: what they allow, and that an impossible one is named with what is possible."""

from __future__ import annotations

import pytest

from quantkit.config.levels import LevelRecipe
from quantkit.core.errors import InputError
from quantkit.formats.tensors import TensorInfo
from quantkit.plan.allocate import allocate
from quantkit.plan.allowed_types import allowed_types, smallest_bytes, smallest_types, undominated
from quantkit.plan.gpu_memory import padded_bytes

DOWN = TensorInfo("blk.0.ffn_down_exps.weight", (4, 8, 288), "BF16")
UP = TensorInfo("blk.0.ffn_up_exps.weight", (4, 288, 256), "BF16")
NORM = TensorInfo("blk.0.attn_norm.weight", (256,), "F32")
MODEL = [NORM, DOWN, UP]
COSTS = {
    DOWN.name: {"Q8_0": 0.1, "Q5_0": 0.3, "Q4_0": 0.5},
    UP.name: {"Q8_0": 0.1, "Q6_K": 0.15, "Q4_K": 0.4, "Q4_0": 0.5},
}


def level(**rules: dict[str, str]) -> LevelRecipe:
    return LevelRecipe(name="mine", **rules)


def test_a_minimum_is_a_floor_and_the_largest_counts() -> None:
    allowed = allowed_types(MODEL, COSTS, level(minimum={"ffn_": "Q4_K", "down": "Q5_0"}))
    assert list(allowed[DOWN.name]) == ["Q8_0", "Q5_0"]
    assert list(allowed[UP.name]) == ["Q8_0", "Q6_K", "Q4_K", "Q4_0"]
    with pytest.raises(InputError, match=r"ffn_down_exps.*rows of 288.*at least 16 bits.*lower"):
        allowed_types(MODEL, COSTS, level(minimum={"down": "BF16"}))


def test_a_pin_is_the_type_and_comes_before_a_minimum() -> None:
    rules = level(pin={"up": "Q6_K", "down": "BF16"}, minimum={"ffn": "Q8_0"})
    found = allocate(MODEL, COSTS, 10**6, 0, rules)
    assert found.types == {NORM.name: "F32", DOWN.name: "BF16", UP.name: "Q6_K"}
    assert found.cost == 0.15  # what stays as the model has it costs nothing


def test_an_impossible_pin_says_what_is_possible() -> None:
    with pytest.raises(
        InputError, match=r"rows of 288\) to Q4_K, which has blocks of 256; poss.*Q5_0"
    ):
        allowed_types(MODEL, COSTS, level(pin={"down": "Q4_K"}))
    with pytest.raises(InputError, match=r"to Q4_1, which is not among the measured.*Q6_K"):
        allowed_types(MODEL, COSTS, level(pin={"up": "Q4_1"}))
    with pytest.raises(InputError, match=r"mine pins .*up_exps.* to Q4_K and to Q6_K"):
        allowed_types(MODEL, COSTS, level(pin={"up": "Q4_K", "ffn_up": "Q6_K"}))
    with pytest.raises(InputError, match="pins 'attn_norm', which no tensor that is quantized"):
        allowed_types(MODEL, COSTS, level(pin={"attn_norm": "Q8_0"}))


def test_smallest_types_keep_the_rules() -> None:
    types = smallest_types(MODEL, COSTS, level(minimum={"up": "Q6_K"}))
    assert types == {NORM.name: "F32", DOWN.name: "Q4_0", UP.name: "Q6_K"}
    total = sum(padded_bytes(info, types[info.name]) for info in MODEL)
    assert smallest_bytes(MODEL, COSTS, level(minimum={"up": "Q6_K"})) == total


def test_types_that_are_larger_and_no_better_are_left_out() -> None:
    sizes = {"a": 10, "b": 20, "c": 20, "d": 30, "e": 40}
    costs = {"a": 0.5, "b": 0.6, "c": 0.4, "d": 0.4, "e": 0.1}
    assert undominated(sizes, costs) == ["a", "c", "e"]
