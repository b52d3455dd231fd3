"""Launch files: scripts for llama.cpp, a compose file, an Ollama Modelfile, a systemd unit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from quantkit.config.target import DRAFT_KV_TYPE
from quantkit.core.files import atomic
from quantkit.plan.launch.llama_cpp import (
    ALL_LAYERS,
    DRAFT_TYPE,
    NO_PIPELINE,
    PORT,
    cli_script,
    environment,
    served_arguments,
    server_arguments,
    server_script,
    summary,
)
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
        # `$$` is a dollar: compose replaces variables after one
        "command": [
            a.replace("$", "$$") for a in (*arguments, "--host", "0.0.0.0", "--port", str(PORT))
        ],
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


DOCUMENTED_KV_TYPES = ("f16", "q8_0", "q4_0")


def modelfile(launch: Launch) -> str:
    """FROM the file, or from the file that its shards are merged into, and the parameters."""
    use = [
        f"{launch.model_name}, for Ollama: ollama create NAME -f Modelfile",
        "The command copies the model into Ollama's own folder.",
    ]
    parts = (use, _shards(launch), _server(launch), _sequences(launch), _context(launch))
    comments = "\n#\n".join("\n".join(f"# {line}" for line in part) for part in parts if part)
    lines = [
        comments,
        # the path begins with a folder, so Ollama does not interpret a leading ~ or quote
        f"FROM {launch.path_to(launch.merged_file)}",
        f"PARAMETER num_ctx {launch.run.context_tokens}",
        f"PARAMETER num_gpu {ALL_LAYERS}",
        "# Ollama uses num_batch for both the logical and the physical batch.",
        f"PARAMETER num_batch {launch.run.ubatch_tokens}",
        *(f"PARAMETER stop {_stop(text)}" for text in launch.stops if _stop(text)),
    ]
    return "\n".join(lines) + "\n"


def _stop(text: str) -> str:
    """The text as Ollama's parser reads it; empty where it would read another."""
    if not text.isprintable() or text != text.strip() or text.endswith('"'):
        return ""
    return f'"""{text}"""' if '"' in text else f'"{text}"'


def server_environment(launch: Launch) -> dict[str, str]:
    """The environment of `ollama serve` that the plan needs; it applies to all its models."""
    variables = {
        "OLLAMA_FLASH_ATTENTION": "1" if launch.run.flash_attention else "0",
        "OLLAMA_KV_CACHE_TYPE": launch.run.kv_type,
        "OLLAMA_NUM_PARALLEL": "1",  # each sequence would get num_ctx tokens
        **environment(launch),
        "LLAMA_ARG_FIT": "off",
    }
    if launch.run.drafted_tokens:
        variables["LLAMA_ARG_SPEC_TYPE"] = DRAFT_TYPE
        variables["LLAMA_ARG_SPEC_DRAFT_N_MAX"] = str(launch.run.drafted_tokens)
        for cache in ("K", "V"):
            variables[f"LLAMA_ARG_SPEC_DRAFT_CACHE_TYPE_{cache}"] = DRAFT_KV_TYPE
    if len(launch.shares) > 1:
        variables["OLLAMA_SCHED_SPREAD"] = "1"
        variables["LLAMA_ARG_SPLIT_MODE"] = "layer"
        variables["LLAMA_ARG_TENSOR_SPLIT"] = ",".join(map(str, launch.shares))
        if not launch.run.pipeline:
            variables["LLAMA_ARG_OVERRIDE_TENSOR"] = NO_PIPELINE
    return variables


def _shards(launch: Launch) -> list[str]:
    if len(launch.files) < 2:
        return []
    files = (launch.path_to(launch.model_file), launch.path_to(launch.merged_file))
    merge = ("llama-gguf-split", "--merge", *files)
    return [
        f"Ollama opens a single file, and this model has {len(launch.files)}. Merge them first:",
        f"  {shlex.join(merge)}",
    ]


def _server(launch: Launch) -> list[str]:
    lines = [
        "A Modelfile cannot set the type of the KV cache, flash attention, or the layers of each",
        "GPU. Set them in the environment of `ollama serve`; they apply to all of its models:",
        *(f"  {name}={value}" for name, value in server_environment(launch).items()),
        "LLAMA_ARG_... need Ollama 0.30 or newer. Older versions place the layers by their own",
        "estimate, and the plan does not hold. `ollama ps` must show 100% GPU, and the context",
        "below.",
    ]
    if launch.run.kv_type not in DOCUMENTED_KV_TYPES:
        known = ", ".join(DOCUMENTED_KV_TYPES)
        lines.append(f"Ollama documents the types {known}; {launch.run.kv_type} may not work.")
    return lines


def _sequences(launch: Launch) -> list[str]:
    if launch.run.sequences == 1:
        return []
    return [
        f"The plan serves {launch.run.sequences} requests at once, which share the context. Ollama",
        "gives each request a context of its own, so this file serves one at a time. For more, set",
        "OLLAMA_NUM_PARALLEL and divide num_ctx by it. Ollama serves some architectures one at a",
        "time in any case, nemotron_h_moe among them.",
    ]


def _context(launch: Launch) -> list[str]:
    if not launch.needs_longer_context:
        return []
    key = f"{launch.architecture}.context_length"
    tokens = str(launch.placement.trained_context_tokens)
    change = ("gguf-set-metadata", launch.path_to(launch.merged_file), key, tokens)
    return [
        f"Ollama limits num_ctx to the file's {key}, {launch.gguf_context_tokens}.",
        "Change the file before `ollama create`, with a program of the Python package gguf:",
        f"  {shlex.join(change)}",
    ]


PROGRAM = "/usr/local/bin/llama-server"
MODELS_FOLDER = "/srv/models"
_SAFE = re.compile(r"[A-Za-z0-9_.,:=/@+-]+")
_UNIT = """\
{comments}
# The model must be in {folder} and readable by all; `systemctl edit` changes folder and program.
[Unit]
Description={name} (llama-server)
# DeviceAllow= covers /dev/nvidia-uvm only if its driver is loaded when the service starts.
Wants=modprobe@nvidia.service modprobe@nvidia_uvm.service
After=network.target modprobe@nvidia.service modprobe@nvidia_uvm.service nvidia-persistenced.service

[Service]
Type=exec
WorkingDirectory={folder}
Environment={environment}
Environment=CUDA_CACHE_PATH=%C/llama-server
# Creates /dev/nvidia-uvm, which CUDA cannot create without new privileges.
ExecStartPre=-+/usr/bin/nvidia-modprobe -c 0 -u
ExecStart={command}
Restart=on-failure
RestartSec=10
CacheDirectory=llama-server

DynamicUser=yes
CapabilityBoundingSet=
NoNewPrivileges=yes
UMask=0077
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
# Only the GPUs; PrivateDevices= would hide them.
DevicePolicy=closed
DeviceAllow=char-nvidia* rwm
IPAddressDeny=any
IPAddressAllow=localhost
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""


def systemd_unit(launch: Launch, program: str = PROGRAM) -> str:
    """A unit that runs `program` with the model in MODELS_FOLDER, wherever the model is now."""
    return _UNIT.format(
        # a backslash at the end of a line would continue the comment
        comments="\n".join(f"# {line}." for line in summary(launch)),
        folder=MODELS_FOLDER,
        name=_specifiers(launch.model_name),
        environment=" ".join(f"{name}={value}" for name, value in environment(launch).items()),
        command=exec_line((program, *served_arguments(launch))),
    )


def exec_line(words: Sequence[str]) -> str:
    """A value of ExecStart= for exactly these words, the first of which is a path."""
    return " ".join(_quoted(word) for word in words)


def _quoted(word: str) -> str:
    if _SAFE.fullmatch(word):
        return word
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{_specifiers(escaped)}"'


def _specifiers(text: str) -> str:
    return text.replace("%", "%%")


SERVER_SCRIPT = "run-llama-server.sh"
CLI_SCRIPT = "run-llama-cli.sh"
COMPOSE_FILE = "compose.yaml"
MODELFILE = "Modelfile"
SYSTEMD_UNIT = "llama-server.service"


PROGRAMS = (SERVER_SCRIPT, CLI_SCRIPT)
"""The launch files that are executable."""


def launch_texts(launch: Launch) -> dict[str, str]:
    """Name → launch file, for a folder from which the model is in `launch.model_folder`.

    No text names the folder itself, so the files can be moved together with the model.
    """
    return {
        SERVER_SCRIPT: server_script(launch),
        CLI_SCRIPT: cli_script(launch),
        COMPOSE_FILE: compose_file(launch),
        MODELFILE: modelfile(launch),
        SYSTEMD_UNIT: systemd_unit(launch),
    }


def write_launch_files(launch: Launch, folder: Path) -> tuple[Path, ...]:
    texts = launch_texts(launch)
    for name, text in texts.items():
        with atomic(folder / name, executable=name in PROGRAMS) as partial:
            partial.write_text(text, encoding="utf-8")
    return tuple(folder / name for name in texts)
