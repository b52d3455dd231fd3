"""compose.yaml, read as YAML and with compose's rule for `$`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from hypothesis import given
from launches import AWKWARD, FLAGSHIP, PRINTABLE, SINGLE, launched, named

from quantkit.plan.launch.files import compose_file
from quantkit.plan.launch.llama_cpp import server_arguments
from quantkit.plan.launch.settings import Launch


def service(launch: Launch) -> dict[str, Any]:
    document = yaml.safe_load(compose_file(launch))
    assert list(document) == ["name", "services"]
    (found,) = document["services"].values()
    return found  # type: ignore[no-any-return]


def interpolated(text: str) -> str:
    """As compose does, with no variable set: `$$` is a dollar, and nothing else is left."""

    def value(match: re.Match[str]) -> str:
        if match[0] == "$$":
            return "$"
        assert match["default"] is not None, text
        return match["default"]

    return re.sub(r"\$\$|\$\{\w+:-(?P<default>[^}]*)\}|\$", value, text)


def test_the_whole_service() -> None:
    found = service(FLAGSHIP)
    found.pop("command")
    assert found == {
        "image": "ghcr.io/ggml-org/llama.cpp:server-cuda",
        "environment": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": "0,1,2,3",
        },
        "ports": ["127.0.0.1:${PORT:-8080}:8080"],
        "volumes": [
            {
                "type": "bind",
                "source": "${MODELS_DIR:-.}",
                "target": "/models",
                "read_only": True,
                "bind": {"create_host_path": False},
            }
        ],
        "healthcheck": {
            "test": ["CMD", "curl", "--fail", "--silent", "http://127.0.0.1:8080/health"],
            "interval": "15s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "15m",
        },
        "restart": "unless-stopped",
        "security_opt": ["no-new-privileges:true"],
        "deploy": {
            "resources": {
                "reservations": {
                    "devices": [
                        {
                            "driver": "nvidia",
                            "device_ids": ["0", "1", "2", "3"],
                            "capabilities": ["gpu"],
                        }
                    ]
                }
            }
        },
    }


def check(launch: Launch) -> None:
    command = service(launch)["command"]
    assert all(isinstance(word, str) for word in command)
    expected = server_arguments(launch, f"/models/{launch.model_file}")
    wanted = [*expected, "--host", "0.0.0.0", "--port", "8080"]
    assert [interpolated(word) for word in command] == wanted


@pytest.mark.parametrize("folder", ["../..", "../../Q4_K_S"])
def test_the_model_s_folder_is_mounted(folder: str) -> None:
    launch = launched(FLAGSHIP, model_folder=folder)
    (volume,) = service(launch)["volumes"]
    assert interpolated(volume["source"]) == folder
    assert service(launch) | {"volumes": []} == service(FLAGSHIP) | {"volumes": []}
    assert f"The model is in {folder}; set MODELS_DIR" in compose_file(launch)
    assert "The model is in this folder" in compose_file(FLAGSHIP)


@pytest.mark.parametrize("name", AWKWARD)
def test_the_command_is_llama_servers(name: str) -> None:
    check(named(name))


@given(PRINTABLE)
def test_any_name(name: str) -> None:
    check(named(name.replace("/", "_"), SINGLE))


@pytest.mark.parametrize("name", ["Ä/Ö x", "-", "A.B:c", "$HOME"])
def test_project_names_are_composes(name: str) -> None:
    launch = launched(SINGLE, model_name=name)
    project = yaml.safe_load(compose_file(launch))["name"]
    assert re.fullmatch(r"[a-z0-9][a-z0-9_-]*", project)


def test_only_gpus_with_layers_are_reserved() -> None:
    launch = launched(FLAGSHIP, tensor_split=(0, 45, 0, 44))
    (gpus,) = service(launch)["deploy"]["resources"]["reservations"]["devices"]
    assert gpus["device_ids"] == ["1", "3"]
    assert "1 RTX 3090, 3 RTX 3090" in compose_file(launch)


@pytest.mark.parametrize(
    ("devices", "inside"),
    [
        (("3", "1", "10", "2"), "2,0,3,1"),
        (("GPU-a", "GPU-c", "GPU-b", "MIG-d"), "GPU-a,GPU-c,GPU-b,MIG-d"),
    ],
)
def test_chosen_gpus_keep_their_order_in_the_container(
    devices: tuple[str, ...], inside: str
) -> None:
    found = service(launched(FLAGSHIP, devices=devices))
    (gpus,) = found["deploy"]["resources"]["reservations"]["devices"]
    assert gpus["device_ids"] == list(devices)
    assert found["environment"]["CUDA_VISIBLE_DEVICES"] == inside
