"""A compose file that serves the model from llama.cpp's own image."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quantkit.plan.launch.llama_cpp import PORT, server_arguments, summary
from quantkit.plan.launch.settings import Launch

IMAGE = "ghcr.io/ggml-org/llama.cpp:server-cuda"
_HEADER = """\
#
#   docker compose up -d        serves on 127.0.0.1:{port}; PORT=9000 chooses another
#
# {where}; MODELS_DIR is another folder with it. For other GPUs than these,
# change device_ids and CUDA_VISIBLE_DEVICES, which counts from 0 inside the container, in
# nvidia-smi's order. It needs the NVIDIA Container Toolkit. `docker compose pull` first: an older
# image may not know the model.
"""


def compose_file(launch: Launch) -> str:
    """A compose.yaml; the model's folder is mounted read-only, the port is this machine's only."""
    import yaml

    arguments = server_arguments(launch, f"/models/{launch.model_file}")
    gpus = {
        "driver": "nvidia",
        "device_ids": list(launch.shown_devices),
        "capabilities": ["gpu"],
    }
    service: dict[str, Any] = {
        "image": IMAGE,
        # inside the container all interfaces; the port below is bound to this machine
        "command": [_plain(a) for a in (*arguments, "--host", "0.0.0.0", "--port", str(PORT))],
        "environment": {
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            "CUDA_VISIBLE_DEVICES": _inside(launch.shown_devices),
        },
        "ports": [f"127.0.0.1:${{PORT:-{PORT}}}:{PORT}"],
        "volumes": [
            {
                "type": "bind",
                "source": f"${{MODELS_DIR:-{launch.model_folder}}}",
                "target": "/models",
                "read_only": True,
                "bind": {"create_host_path": False},
            }
        ],
        "healthcheck": {
            "test": ["CMD", "curl", "--fail", "--silent", f"http://127.0.0.1:{PORT}/health"],
            "interval": "15s",
            "timeout": "5s",
            "retries": 3,
            "start_period": "15m",  # a large model takes minutes to load
        },
        "restart": "unless-stopped",
        "security_opt": ["no-new-privileges:true"],
        "deploy": {"resources": {"reservations": {"devices": [gpus]}}},
    }
    # two levels lie in folders of one name, which would be the project's
    project = "quantkit-" + re.sub(r"[^a-z0-9_-]+", "-", launch.model_name.lower())
    document = {"name": project, "services": {"llama-server": service}}
    comments = "".join(f"# {line}\n" for line in summary(launch))
    beside = launch.model_folder == "."
    where = (
        "The file lies beside the model" if beside else f"The model lies in {launch.model_folder}"
    )
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return comments + _HEADER.format(port=PORT, where=where) + body


def _inside(devices: Sequence[str]) -> str:
    """The same GPUs in the same order, as a container that has only them numbers them."""
    if not all(device.isdecimal() for device in devices):
        return ",".join(devices)  # UUIDs are the same everywhere
    ranks = sorted(map(int, devices))
    return ",".join(str(ranks.index(int(device))) for device in devices)


def _plain(text: str) -> str:
    """`text` without a meaning for compose, which puts variables in for `$`."""
    return text.replace("$", "$$")
