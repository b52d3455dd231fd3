"""Launch files of a release: what the build's start, from where the model lies there."""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from models import write_llama

from quantkit.config.target import Target, load_target
from quantkit.core.errors import InputError
from quantkit.models.choose import choose_model, open_source
from quantkit.plan.gpu_memory import gpu_memory
from quantkit.plan.launch.files import CLI_SCRIPT, SERVER_SCRIPT, launch_texts
from quantkit.plan.launch.llama_cpp import server_command
from quantkit.plan.launch.of_plan import launch_of
from quantkit.plan.launch.settings import Launch
from quantkit.plan.model import PlannedModel
from quantkit.plan.place import Placement, place
from quantkit.plan.placement_file import placement_json
from quantkit.release.launches import launch_from, read_placement

UUIDS = tuple(f"GPU-{n}6ca9e2d-1f0b-4c1e-9d3a-000000000000" for n in range(4))


def demo() -> PlannedModel:
    source = open_source(choose_model("demo"))
    return PlannedModel.of("demo-Q4", source.metadata, source.tensors)


def placed(model: PlannedModel, target: Target) -> Placement:
    types = {info.name: info.type_name for info in model.tensors}
    return place(model.tensors, types, gpu_memory(model.geometry, target), target)


def content_of(placement: Placement, command: str = "") -> dict[str, Any]:
    """What placement.json gives whoever reads it."""
    content: dict[str, Any] = json.loads(json.dumps(placement_json(placement, command)))
    return content


def published(content: dict[str, Any], file: str = "m.gguf", folder: str = "../..") -> Launch:
    return launch_from(content, file, "demo-Q4", "nemotron_h_moe", 1 << 20, folder)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"ubatch_tokens": 4096},
        {"ubatch_tokens": 256, "sequences": 4, "pipeline": False},
        {"kv_type": "f16", "flash_attention": False, "context_tokens": 8192},
        {"layers": "in_order"},
        {"devices": UUIDS},
        {"draft": "mtp"},
    ],
)
def test_it_is_what_the_build_started_but_for_folder_and_devices(changes: dict[str, Any]) -> None:
    model, target = demo(), load_target("4x3090")
    given = dict(changes)
    draft = given.pop("draft", "none")
    target = Target.model_validate(target.model_dump() | given)
    # the demo has no prediction layers; what matters here is what a placement says of them
    placement = dataclasses.replace(placed(model, target), draft=draft)
    built = launch_of(placement, model, "m.gguf")
    launch = published(content_of(placement, server_command(built)))
    assert launch == dataclasses.replace(built, devices=(), model_folder="../..")
    assert (launch.drafted_tokens > 0) == (draft == "mtp")
    assert not any(uuid in text for text, _ in launch_texts(launch).values() for uuid in UUIDS)
    if not target.devices:
        said = content_of(placement, server_command(built))["command"]
        assert server_command(launch) == said


def test_what_is_read_is_what_was_written() -> None:
    placement = placed(demo(), load_target("4x3090"))
    assert placement.estimated
    assert read_placement(content_of(placement)) == placement
    asked = dataclasses.replace(placement, estimated=False, devices=UUIDS)
    assert read_placement(content_of(asked)) == dataclasses.replace(asked, devices=())


@pytest.mark.parametrize("script", [SERVER_SCRIPT, CLI_SCRIPT])
@pytest.mark.parametrize("shards", [False, True])
def test_scripts_find_the_model_of_a_release(shards: bool, script: str, tmp_path: Path) -> None:
    """Wherever the release lies and whoever is where; a Hub's client keeps no executable bit."""
    release, elsewhere = tmp_path / "my release", tmp_path / "elsewhere"
    file = "demo-Q4-00001-of-00002.gguf" if shards else "demo-Q4.gguf"
    there = release / "Q4" / file if shards else release / file
    there.parent.mkdir(parents=True)
    write_llama(there)
    evidence = release / "levels" / "Q4"
    evidence.mkdir(parents=True)
    elsewhere.mkdir()
    folder = "../../Q4" if shards else "../.."
    launch = published(content_of(placed(demo(), load_target("4x3090"))), file, folder)
    (evidence / script).write_text(launch_texts(launch)[script].text)
    server = tmp_path / "a server"
    server.write_text('#!/bin/sh\ntest "$1" = -m && head -c 4 -- "$2" && echo " $PWD $3 $4"\n')
    server.chmod(0o755)
    at = evidence / script
    for cwd, path in (
        (elsewhere, at),
        (evidence, Path(script)),
        (tmp_path, at.relative_to(tmp_path)),
    ):
        done = subprocess.run(
            ["/bin/sh", path],
            env={"PATH": "/usr/bin:/bin", "LLAMA_SERVER": str(server), "LLAMA_CLI": str(server)},
            cwd=cwd,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == f"GGUF {cwd} -ngl 999\n"


def test_compose_and_ollama_name_the_model_of_a_release() -> None:
    content = content_of(placed(demo(), load_target("4x3090")))
    texts = launch_texts(published(content, "demo-Q4-00001-of-00002.gguf", "../../Q4"))
    assert "source: ${MODELS_DIR:-../../Q4}\n" in texts["compose.yaml"].text
    assert "- /models/demo-Q4-00001-of-00002.gguf\n" in texts["compose.yaml"].text
    assert "\nFROM ../../Q4/demo-Q4.gguf\n" in texts["Modelfile"].text
    unit = next(
        line for line in texts["llama-server.service"].text.split("\n") if "ExecStart=" in line
    )
    assert shlex.split(unit)[1:3] == ["-m", "demo-Q4-00001-of-00002.gguf"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("context_tokens", "516096"),
        ("context_tokens", 1.5),
        ("context_tokens", True),
        ("kv_type", 8),
        ("tensor_split", "2,2"),
        ("tensor_split", [2, None]),
        ("gpus", {}),
        ("draft", "eagle"),
        ("pipeline", 1),
        ("flash_attention", None),
        ("compute_is_estimated", "no"),
    ],
)
def test_a_key_of_another_form_is_named(key: str, value: object) -> None:
    content = content_of(placed(demo(), load_target("4x3090")))
    for broken in (content | {key: value}, {k: v for k, v in content.items() if k != key}):
        with pytest.raises(InputError, match=rf"^placement\.json: {key}"):
            published(broken)


def test_a_gpu_s_key_is_named() -> None:
    content = content_of(placed(demo(), load_target("4x3090")))
    del content["gpus"][2]["name"]
    with pytest.raises(InputError, match=r"gpus\.2\.name: "):
        published(content)


@pytest.mark.parametrize(
    "changes",
    [
        {"context_tokens": 0},
        {"context_tokens": 1 << 21},
        {"tensor_split": [1, 1]},
        {"tensor_split": [0, 0, 0, 0]},
        {"sequences": -1},
    ],
)
def test_numbers_that_no_plan_has(changes: dict[str, Any]) -> None:
    content = content_of(placed(demo(), load_target("4x3090")))
    with pytest.raises(InputError, match="cannot be started: no plan has"):
        published(content | changes)


def test_words_that_would_be_more_than_words() -> None:
    content = content_of(placed(demo(), load_target("4x3090")))
    with pytest.raises(InputError, match="KV type"):
        published(content | {"kv_type": "f16 --host 0.0.0.0"})
    content["gpus"][0]["name"] = "GPU\nPARAMETER x"
    with pytest.raises(InputError, match="a GPU's name"):
        published(content)


@pytest.mark.parametrize("content", [[], "x", None, 3])
def test_only_an_object(content: Any) -> None:  # noqa: ANN401 - any JSON
    with pytest.raises(InputError, match="must hold an object"):
        published(content)
