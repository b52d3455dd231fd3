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
#   docker compose up -d        serves on 127.0.0.1:{port}; set PORT for another port
#
# {where}; set MODELS_DIR if it is in another folder. To use other
# GPUs, change device_ids and CUDA_VISIBLE_DEVICES. CUDA_VISIBLE_DEVICES counts from 0 inside the
# container, in nvidia-smi's order. The NVIDIA Container Toolkit is needed. Run
# `docker compose pull` first: an older image may not know the model.
"""


def compose_file(launch: Launch) -> str:
    """A compose.yaml with the model's folder read-only and the port on this machine only."""
    import yaml

    arguments = server_arguments(launch, f"/models/{launch.model_file}")
    gpus = {
        "driver": "nvidia",
        "device_ids": list(launch.shown_devices),
        "capabilities": ["gpu"],
    }
    service: dict[str, Any] = {
        "image": IMAGE,
        # all interfaces of the container; below, the port is published on this machine only
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
    # without a name, two levels in folders of the same name would be one project
    project = "quantkit-" + re.sub(r"[^a-z0-9_-]+", "-", launch.model_name.lower())
    document = {"name": project, "services": {"llama-server": service}}
    comments = "".join(f"# {line}\n" for line in summary(launch))
    beside = launch.model_folder == "."
    where = "The model is in this folder" if beside else f"The model is in {launch.model_folder}"
    body = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=1000)
    return comments + _HEADER.format(port=PORT, where=where) + body


def _inside(devices: Sequence[str]) -> str:
    """The same GPUs in the same order, as numbered in a container that has no others."""
    if not all(device.isdecimal() for device in devices):
        return ",".join(devices)  # UUIDs are the same everywhere
    ranks = sorted(map(int, devices))
    return ",".join(str(ranks.index(int(device))) for device in devices)


def _plain(text: str) -> str:
    """`text` escaped for compose, which replaces variables after `$`."""
    return text.replace("$", "$$")
