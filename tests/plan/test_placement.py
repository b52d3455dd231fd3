"""placement.json: written and read by one class, and strict."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import flagship
import pytest

from quantkit.config.target import load_target
from quantkit.core.errors import InputError
from quantkit.models.model import Model
from quantkit.plan.gpu_memory import gpu_memory
from quantkit.plan.launch.files import launch_texts
from quantkit.plan.launch.llama_cpp import server_command
from quantkit.plan.launch.settings import Launch
from quantkit.plan.placement import Placement, PlacementFile, place

MODEL = Model("super", flagship.metadata(), flagship.tensors())
TYPES = {i.name: "F32" if i.type_name == "F32" else "Q4_0" for i in MODEL.tensors}
UUIDS = tuple(f"GPU-{n}6ca9e2d-1f0b-4c1e-9d3a-000000000000" for n in range(4))


def placed(**changes: Any) -> Placement:  # noqa: ANN401 - values of many fields
    target = load_target("4x3090").changed(**changes)
    return place(MODEL.tensors, TYPES, gpu_memory(MODEL.geometry, target))


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
    assert not any(uuid in text for text, _ in launch_texts(launch).values() for uuid in UUIDS)


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
