"""A systemd unit for llama-server: an unprivileged user, reachable on loopback only.

Quoting follows systemd.syntax(7) and systemd.service(5): in a command `%` begins a specifier and
`$` a variable, so each is doubled to stand for itself; quoted words take C's escapes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from quantkit.plan.launch.llama_cpp import HOST, PORT, environment, server_arguments, summary
from quantkit.plan.launch.settings import Launch

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
    arguments = (*server_arguments(launch), "--host", HOST, "--port", str(PORT))
    return _UNIT.format(
        # a backslash at the end of a line would continue the comment
        comments="\n".join(f"# {line}." for line in summary(launch)),
        folder=MODELS_FOLDER,
        name=_specifiers(launch.model_name),
        environment=" ".join(f"{name}={value}" for name, value in environment(launch).items()),
        command=exec_line((program, *arguments)),
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
