"""Placement: exact against brute force, llama.cpp's rule, and its memory log of the flagship."""

from __future__ import annotations

import itertools

import flagship
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.errors import DoesNotFitError, InputError
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.models.geometry import geometry_of
from quantkit.plan.gpu_memory import gpu_memory
from quantkit.plan.placement import Placement, assign_layers, check_fits, place
from quantkit.plan.solver import contiguous_counts, counts_in_order

MIB = 1 << 20


def smallest_room(load: list[int], room: list[int], counts: tuple[int, ...]) -> int:
    at, left = 0, []
    for count, space in zip(counts, room, strict=True):
        if count:
            left.append(space - sum(load[at : at + count]))
        at += count
    return min(left)


@given(
    load=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    room=st.lists(st.integers(1, 120), min_size=1, max_size=4),
)
@settings(max_examples=150)
def test_equals_brute_force(load: list[int], room: list[int]) -> None:
    counts = contiguous_counts(load, room)
    assert sum(counts) == len(load)
    choices = [
        c for c in itertools.product(range(len(load) + 1), repeat=len(room)) if sum(c) == len(load)
    ]
    best = max(smallest_room(load, room, c) for c in choices)
    assert smallest_room(load, room, tuple(counts)) == best


@given(counts=st.lists(st.integers(0, 60), min_size=1, max_size=8).filter(any))
def test_layer_counts_as_shares_give_exactly_those_layers(counts: list[int]) -> None:
    gpus = assign_layers(counts, sum(counts))
    assert gpus == [gpu for gpu, count in enumerate(counts) for _ in range(count)]


def test_even_shares_of_the_flagship_as_llama_cpp_logs_them() -> None:
    assert np.bincount(assign_layers([1, 1, 1, 1], 89)).tolist() == [23, 22, 22, 22]


def q4_k_s_like() -> dict[str, str]:
    return {
        i.name: "F32" if i.type_name == "F32" else "Q5_0" if "down_exps" in i.name else "Q4_K"
        for i in flagship.tensors()
    }


def placed(target: Target) -> Placement:
    memory = gpu_memory(geometry_of(flagship.metadata()), target)
    return place(flagship.tensors(), q4_k_s_like(), memory)


def test_uneven_gpus_get_uneven_layers() -> None:
    gpus = (GPUSpec(name="24", memory_gib=24, count=2), GPUSpec(name="40", memory_gib=40))
    target = Target(name="t", gpus=gpus, context_tokens=131072)
    placement = placed(target)
    assert placement.fits
    assert placement.tensor_split[2] > placement.tensor_split[0]
    assert sum(placement.tensor_split) == 89


def test_what_does_not_fit_says_by_how_much() -> None:
    target = load_target("1x3090")
    placement = placed(target)
    with pytest.raises(DoesNotFitError, match=r"1x3090: RTX 3090 would need .* GiB too much"):
        check_fits(placement, target.name)


def test_context_is_capped_at_what_the_model_was_trained_for() -> None:
    target = Target(name="t", gpus=(GPUSpec(name="c", memory_gib=200),), context_tokens=4_000_000)
    placement = placed(target)
    assert placement.run.context_tokens == 1048576


def test_a_tied_embedding_lies_with_the_cpu_and_on_the_output_s_gpu() -> None:
    geometry, target = geometry_of(flagship.metadata()), load_target("4x3090")
    untied, types = flagship.tensors(), q4_k_s_like()
    tied = [info for info in untied if info.name != "output.weight"]
    (embedding,) = [info for info in tied if info.name == "token_embd.weight"]
    size = BY_NAME[types[embedding.name]].size_bytes(embedding.elements)
    memory = gpu_memory(geometry, target)
    one, two = place(untied, types, memory), place(tied, types, memory)
    assert one.host_bytes == two.host_bytes == size
    held = [sum(gpu.weights_bytes for gpu in placement.gpus) for placement in (one, two)]
    whole = [
        sum(BY_NAME[types[info.name]].size_bytes(info.elements) for info in tensors)
        for tensors in (untied, tied)
    ]
    assert held == [whole[0] - size, whole[1]]


def test_a_tensor_of_a_layer_that_the_model_does_not_have_is_named() -> None:
    stray = TensorInfo("blk.88.ffn_up.weight", (4096, 4096), "BF16")
    types = {**q4_k_s_like(), stray.name: "BF16"}
    target = load_target("4x3090")
    memory = gpu_memory(geometry_of(flagship.metadata()), target)
    with pytest.raises(InputError, match=r"blk\.88\.ffn_up.*layer 88.* 88 layers"):
        place([*flagship.tensors(), stray], types, memory)


def test_in_order_fills_a_gpu_before_the_next_gets_layers() -> None:
    gpus = (GPUSpec(name="40", memory_gib=40, count=4),)
    spread = Target(name="t", gpus=gpus, context_tokens=131072)
    found = placed(spread.changed(layers="in_order"))
    assert found.fits
    assert found.tensor_split[2] < found.tensor_split[1]
    assert found.tensor_split[3] == 0
    assert min(placed(spread).tensor_split) > 20
    first = found.gpus[0]
    assert first.free_bytes < max(first.weights_bytes // first.layers, 1) * 4


@given(
    load=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    room=st.lists(st.integers(1, 120), min_size=1, max_size=4),
)
@settings(max_examples=150)
def test_in_order_holds_all_that_spread_layers_hold(load: list[int], room: list[int]) -> None:
    counts = counts_in_order(load, room)
    assert sum(counts) == len(load)
    spread = smallest_room(load, room, tuple(contiguous_counts(load, room)))
    assert (smallest_room(load, room, tuple(counts)) >= 0) == (spread >= 0)
    used = 0
    while spread >= 0 and used < len(load):  # no GPU could have taken its successor's first layer
        gpu = next(i for i in range(len(counts)) if sum(counts[: i + 1]) > used)
        used += counts[gpu]
        if used < len(load):
            assert sum(load[used - counts[gpu] : used + 1]) > room[gpu]
