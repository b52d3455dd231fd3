"""Placement: exact against brute force, llama.cpp's rule and memory log; placement.json, strict."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import flagship
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantkit.config.target import GPUSpec, Target, load_target
from quantkit.core.errors import DoesNotFitError, InputError
from quantkit.formats.tensor_types import BY_NAME
from quantkit.formats.tensors import TensorInfo
from quantkit.plan.gpu_memory import gpu_memory
from quantkit.plan.launch.files import launch_texts
from quantkit.plan.launch.llama_cpp import server_command
from quantkit.plan.launch.settings import Launch
from quantkit.plan.placement import Placement, PlacementFile, assign_layers, check_fits, place
from quantkit.plan.solver import contiguous_counts, counts_in_order

MODEL = flagship.model()
PUBLISHED = load_target("4x3090")
TYPES = {  # as of Q4_K_S
    i.name: "F32" if i.type_name == "F32" else "Q5_0" if "down_exps" in i.name else "Q4_K"
    for i in MODEL.tensors
}
UUIDS = tuple(f"GPU-{n}6ca9e2d-1f0b-4c1e-9d3a-000000000000" for n in range(4))

with_layers_and_gpus = given(
    load=st.lists(st.integers(0, 50), min_size=1, max_size=8),
    room=st.lists(st.integers(1, 120), min_size=1, max_size=4),
)


def smallest_room(load: list[int], room: list[int], counts: tuple[int, ...]) -> int:
    at, left = 0, []
    for count, space in zip(counts, room, strict=True):
        if count:
            left.append(space - sum(load[at : at + count]))
        at += count
    return min(left)


@with_layers_and_gpus
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


def placed(target: Target = PUBLISHED, **changes: Any) -> Placement:  # noqa: ANN401 - of many fields
    return place(MODEL.tensors, TYPES, gpu_memory(MODEL.geometry, target.changed(**changes)))


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
    untied, types = MODEL.tensors, TYPES
    tied = [info for info in untied if info.name != "output.weight"]
    (embedding,) = [info for info in tied if info.name == "token_embd.weight"]
    size = BY_NAME[types[embedding.name]].size_bytes(embedding.elements)
    memory = gpu_memory(MODEL.geometry, PUBLISHED)
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
    types = {**TYPES, stray.name: "BF16"}
    memory = gpu_memory(MODEL.geometry, PUBLISHED)
    with pytest.raises(InputError, match=r"blk\.88\.ffn_up.*layer 88.* 88 layers"):
        place([*MODEL.tensors, stray], types, memory)


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


@with_layers_and_gpus
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


def launch_of(placement: Placement, **changes: Any) -> Launch:  # noqa: ANN401
    return Launch(placement, "m.gguf", "m", "nemotron_h_moe", 1 << 20, **changes)


def content() -> dict[str, Any]:
    """What a placement.json holds, as JSON."""
    found: dict[str, Any] = json.loads(PlacementFile(command="", placement=placed()).text())
    return found


def parse(changed: object) -> PlacementFile:
    return PlacementFile.parse(json.dumps(changed).encode(), "placement.json")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ubatch_tokens": 4096},
        {"ubatch_tokens": 256, "sequences": 4, "pipeline": False},
        {"kv_type": "f16", "flash_attention": False, "context_tokens": 8192},
        {"layers": "in_order"},
    ],
)
def test_a_launch_from_the_file_is_the_build_s_without_its_devices(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    placement = placed(**changes)
    built = launch_of(placement, devices=UUIDS)
    file = tmp_path / "placement.json"
    PlacementFile(command=server_command(built), placement=placement).write(file)
    assert not any(uuid in file.read_text().replace(server_command(built), "") for uuid in UUIDS)
    found = PlacementFile.read(file)
    assert found.placement == placement
    launch = launch_of(found.placement, model_folder="../..")
    assert launch == dataclasses.replace(built, devices=(), model_folder="../..")
    assert not any(uuid in text for text in launch_texts(launch).values() for uuid in UUIDS)


def test_drafts_are_read_back() -> None:
    drafts = placed().run.model_copy(update={"draft": "mtp"})
    placement = placed().model_copy(update={"run": drafts})
    found = PlacementFile.parse(PlacementFile(command="", placement=placement).text().encode(), "p")
    assert found.placement.run.drafted_tokens == 3


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("run", "context_tokens", "516096"),
        ("run", "context_tokens", 1.5),
        ("run", "context_tokens", True),
        ("run", "context_tokens", 0),
        ("run", "kv_type", 8),
        ("run", "kv_type", "f16 --host 0.0.0.0"),
        ("run", "draft", "eagle"),
        ("run", "pipeline", 1),
        ("run", "flash_attention", None),
        ("run", "sequences", -1),
        ("gpu", "layers", "2"),
        ("gpu", "layers", None),
        ("gpu", "layers", -1),
        ("gpu", "weights_bytes", 1.5),
        ("gpu", "name", 3),
        ("gpu", "name", ...),
    ],
)
def test_a_field_of_another_form_is_named(part: str, key: str, value: object) -> None:
    broken = content()
    of = broken["placement"]["run"] if part == "run" else broken["placement"]["gpus"][2]
    of[key] = value
    if value is ...:
        del of[key]
    with pytest.raises(InputError, match=rf"(placement\.run|gpus\.2)\.{key}"):
        parse(broken)


def test_what_no_plan_has_is_refused() -> None:
    without_layers, too_long, other = content(), content(), content()
    for gpu in without_layers["placement"]["gpus"]:
        gpu["layers"] = 0
    too_long["placement"]["trained_context_tokens"] = 4096
    other["placement"]["devices"] = list(UUIDS)
    for broken, word in ((without_layers, "layer"), (too_long, "4096"), (other, "devices")):
        with pytest.raises(InputError, match=word):
            parse(broken)


@pytest.mark.parametrize("whole", [[], "x", None, 3, {}, {"version": 0}])
def test_only_a_document_of_this_version(whole: object) -> None:
    with pytest.raises(InputError, match=r"placement\.json"):
        parse(whole)
